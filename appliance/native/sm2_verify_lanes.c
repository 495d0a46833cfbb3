#include "sm2_verify.h"

bool sm2_lanes_available(void)
{
    return false;
}

void *sm2_lanes_scratch_new(void)
{
    return 0;
}

void sm2_lanes_verify(void *scratch, const sm2_item *items, size_t count)
{
    (void)scratch, (void)items, (void)count;
}

int sm2_lanes_table(sm2_affine *table, const sm2_affine *point)
{
    (void)table, (void)point;
    return -1;
}
