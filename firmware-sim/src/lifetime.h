/* The one piece of process-wide state that PKCS#11's C interface forces on a module: is it initialised. */
#ifndef FIRMWARE_SIM_LIFETIME_H
#define FIRMWARE_SIM_LIFETIME_H

struct module;

/* The module, held for reading until lifetime_leave; NULL: not initialised, and nothing to leave. */
struct module *lifetime_enter(void);
void lifetime_leave(void);

#endif
