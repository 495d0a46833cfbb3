"""The registry's tables in PostgreSQL, as they came about: one script for each version, never changed once released.

Text is ordered by its bytes, as SQLite orders it, whatever the server's locale is.
"""

from __future__ import annotations

from typing import Final

MIGRATIONS: Final = (
    """
    CREATE DOMAIN bytewise AS TEXT COLLATE "C";
    CREATE TABLE holder (
        epoch BIGINT NOT NULL
    );
    INSERT INTO holder (epoch) VALUES (0);

    CREATE TABLE key (
        name bytewise PRIMARY KEY,
        key_id BYTEA NOT NULL UNIQUE,
        token bytewise NOT NULL,
        algorithm bytewise NOT NULL,
        point BYTEA,
        state bytewise NOT NULL CHECK (state IN ('creating', 'usable', 'disabled', 'destroyed')),
        purpose bytewise NOT NULL CHECK (purpose IN ('signing', 'seal')),
        created_at bytewise NOT NULL,
        CHECK (state = 'creating' OR length(point) = 64)
    );
    CREATE INDEX key_signing ON key (name) WHERE purpose = 'signing';
    CREATE INDEX key_creating ON key (name) WHERE state = 'creating';
    CREATE TABLE account (
        name bytewise PRIMARY KEY,
        password_hash bytewise,
        uid BIGINT,
        certificate_sha256 bytewise,
        disabled BOOLEAN NOT NULL DEFAULT FALSE,
        created_at bytewise NOT NULL
    );
    CREATE TABLE key_grant (
        account bytewise NOT NULL REFERENCES account (name),
        key_name bytewise NOT NULL,
        created_at bytewise NOT NULL,
        PRIMARY KEY (account, key_name)
    );

    CREATE TABLE organisation (
        code bytewise PRIMARY KEY,
        name bytewise NOT NULL,
        region bytewise NOT NULL
    );
    CREATE TABLE seal (
        id bytewise PRIMARY KEY,
        code bytewise NOT NULL,
        organisation bytewise NOT NULL REFERENCES organisation (code),
        kind bytewise NOT NULL,
        purpose bytewise NOT NULL,
        number BIGINT NOT NULL,
        name bytewise NOT NULL,
        region bytewise NOT NULL,
        holder bytewise NOT NULL,
        custodian bytewise NOT NULL,
        applicant bytewise NOT NULL,
        state bytewise NOT NULL,
        version BIGINT NOT NULL,
        generation BIGINT NOT NULL,
        key_name bytewise,
        valid_from bytewise,
        valid_to bytewise,
        applied_at bytewise NOT NULL,
        made_at bytewise,
        filed_at bytewise,
        confirmed_at bytewise,
        activated_at bytewise,
        last_used_at bytewise,
        ended_at bytewise,
        end_reason bytewise,
        replaces bytewise,
        replaced_by bytewise,
        holds_place BOOLEAN NOT NULL,
        idle_from bytewise,
        expires_at bytewise,
        uncollected_from bytewise,
        retain_until bytewise
    ) WITH (fillfactor = 80);  -- room beside each row for its next last_used_at
    CREATE UNIQUE INDEX seal_code ON seal (code) WHERE code <> '';
    CREATE UNIQUE INDEX seal_place ON seal (organisation, kind, purpose, number, holder) WHERE holds_place = TRUE;
    CREATE UNIQUE INDEX seal_statutory ON seal (organisation) WHERE holds_place = TRUE AND kind = 'statutory';
    CREATE UNIQUE INDEX seal_replaces ON seal (replaces) WHERE state NOT IN ('refused', 'cancelled');
    CREATE INDEX seal_organisation ON seal (organisation, id);
    CREATE INDEX seal_custodian ON seal (custodian, id);
    CREATE INDEX seal_state ON seal (state, id);
    CREATE INDEX seal_region ON seal (region, id);
    CREATE INDEX seal_idle ON seal (idle_from) WHERE idle_from IS NOT NULL;
    CREATE INDEX seal_expiry ON seal (expires_at) WHERE expires_at IS NOT NULL;
    CREATE INDEX seal_uncollected ON seal (uncollected_from) WHERE uncollected_from IS NOT NULL;
    CREATE INDEX seal_retained ON seal (retain_until) WHERE retain_until IS NOT NULL;
    CREATE INDEX seal_counted ON seal (region, kind, state);
    CREATE INDEX seal_counted_by_organisation ON seal (organisation, state, kind, region);
    CREATE TABLE imprint (
        seal_id bytewise PRIMARY KEY REFERENCES seal (id),
        format bytewise NOT NULL,
        data BYTEA NOT NULL,
        width_mm BIGINT NOT NULL,
        height_mm BIGINT NOT NULL,
        sm3 BYTEA NOT NULL CHECK (length(sm3) = 32)
    );
    CREATE TABLE application (
        seal_id bytewise PRIMARY KEY REFERENCES seal (id),
        body bytewise NOT NULL
    );
    CREATE TABLE pending (
        seal_id bytewise PRIMARY KEY REFERENCES seal (id),
        key_name bytewise NOT NULL UNIQUE,
        certificate BYTEA
    );
    CREATE TABLE generation (
        seal_id bytewise NOT NULL REFERENCES seal (id),
        number BIGINT NOT NULL,
        key_name bytewise NOT NULL,
        certificate BYTEA NOT NULL,
        eseal BYTEA NOT NULL,
        valid_from bytewise NOT NULL,
        valid_to bytewise NOT NULL,
        made_at bytewise NOT NULL,
        PRIMARY KEY (seal_id, number)
    );
    CREATE INDEX generation_key ON generation (key_name);
    CREATE TABLE event (
        id BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
        seal_id bytewise NOT NULL REFERENCES seal (id),
        at bytewise NOT NULL,
        act bytewise NOT NULL,
        source bytewise,
        target bytewise NOT NULL,
        officer bytewise NOT NULL,
        approver bytewise,
        detail bytewise NOT NULL
    );
    CREATE INDEX event_seal ON event (seal_id, id);
    CREATE TABLE document (
        id BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
        seal_id bytewise NOT NULL REFERENCES seal (id),
        kind bytewise NOT NULL,
        issued_at bytewise NOT NULL,
        body BYTEA NOT NULL,
        signature BYTEA NOT NULL,
        signer BYTEA NOT NULL
    );
    CREATE INDEX document_seal ON document (seal_id, id);
    CREATE TABLE code_sequence (
        region bytewise PRIMARY KEY,
        given BIGINT NOT NULL CHECK (given BETWEEN 1 AND 99999999)
    );

    CREATE TABLE officer (
        name bytewise PRIMARY KEY,
        display_name bytewise NOT NULL,
        roles bytewise NOT NULL,
        password_hash bytewise NOT NULL,
        disabled BOOLEAN NOT NULL,
        created_at bytewise NOT NULL
    );
    CREATE TABLE officer_event (
        id BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
        officer bytewise NOT NULL REFERENCES officer (name),
        at bytewise NOT NULL,
        act bytewise NOT NULL,
        done_by bytewise NOT NULL,
        detail bytewise NOT NULL
    );
    CREATE INDEX officer_event_officer ON officer_event (officer, id);
    CREATE TABLE proposal (
        id bytewise PRIMARY KEY,
        act bytewise NOT NULL,
        target bytewise NOT NULL,
        arguments bytewise NOT NULL,
        proposed_by bytewise NOT NULL,
        proposed_at bytewise NOT NULL,
        expires_at bytewise NOT NULL,
        state bytewise NOT NULL,
        decided_by bytewise,
        decided_at bytewise,
        outcome bytewise,
        CHECK (decided_by <> proposed_by OR state = 'rejected')
    );
    CREATE INDEX proposal_state ON proposal (state, id);
    CREATE INDEX proposal_expiry ON proposal (expires_at) WHERE state = 'open';
    CREATE INDEX proposal_target ON proposal (target);

    CREATE TABLE protection (
        seal_id bytewise PRIMARY KEY REFERENCES seal (id),
        password_hash bytewise NOT NULL,
        set_by bytewise NOT NULL,
        set_at bytewise NOT NULL,
        failures BIGINT NOT NULL,
        locked BOOLEAN NOT NULL,
        generation BIGINT NOT NULL
    );
    CREATE INDEX protection_age ON protection (set_at);
    CREATE TABLE seal_grant (
        account bytewise NOT NULL REFERENCES account (name),
        seal_id bytewise NOT NULL REFERENCES seal (id),
        operations bytewise NOT NULL,
        daily_limit BIGINT NOT NULL CHECK (daily_limit >= 0),
        minute_limit BIGINT NOT NULL CHECK (minute_limit >= 0),
        valid_from bytewise,
        valid_to bytewise,
        sources bytewise NOT NULL,
        approval_pattern bytewise,
        created_at bytewise NOT NULL,
        PRIMARY KEY (account, seal_id)
    );
    CREATE INDEX seal_grant_seal ON seal_grant (seal_id, account);

    CREATE TABLE message (
        id bytewise PRIMARY KEY,
        kind bytewise NOT NULL,
        seal_id bytewise NOT NULL REFERENCES seal (id),
        region bytewise NOT NULL,
        body bytewise NOT NULL,
        created_at bytewise NOT NULL,
        due_at bytewise NOT NULL,
        attempts BIGINT NOT NULL,
        next_attempt_at bytewise NOT NULL,
        last_error bytewise,
        delivered_at bytewise,
        receipt bytewise,
        delay_ms BIGINT,
        CHECK ((delivered_at IS NULL) = (delay_ms IS NULL))
    );
    CREATE INDEX message_next ON message (next_attempt_at, id) WHERE delivered_at IS NULL;
    CREATE INDEX message_due ON message (due_at) WHERE delivered_at IS NULL;
    CREATE INDEX message_seal ON message (seal_id);
    CREATE INDEX message_counted ON message (created_at, kind, region, due_at, delivered_at, delay_ms);

    CREATE TABLE use_of_seal (
        seal_id bytewise NOT NULL REFERENCES seal (id),
        day bytewise NOT NULL,
        account bytewise NOT NULL,
        uses BIGINT NOT NULL,
        PRIMARY KEY (seal_id, day, account)
    );
    CREATE TABLE use_of_day (
        day bytewise NOT NULL,
        account bytewise NOT NULL,
        uses BIGINT NOT NULL,
        PRIMARY KEY (day, account)
    );
    CREATE TABLE reservation (
        seal_id bytewise NOT NULL REFERENCES seal (id),
        account bytewise NOT NULL,
        day bytewise NOT NULL,
        reserved BIGINT NOT NULL CHECK (reserved >= 0),
        PRIMARY KEY (seal_id, account, day)
    );
    CREATE INDEX reservation_day ON reservation (day);

    CREATE FUNCTION is_released(wanted TEXT) RETURNS BOOLEAN LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
    BEGIN
        RETURN EXISTS (
            SELECT 1 FROM seal WHERE id = wanted
                AND retain_until <= to_char(clock_timestamp() AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.MS"+00:00"')
        );
    END $$;
    CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        RAISE EXCEPTION '%', TG_ARGV[0] USING ERRCODE = 'restrict_violation';
    END $$;
    CREATE FUNCTION keep() RETURNS trigger LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
    BEGIN
        IF NOT is_released(to_jsonb(OLD) ->> TG_ARGV[0]) THEN
            RAISE EXCEPTION 'the records of a seal are kept for five years after its end'
                USING ERRCODE = 'restrict_violation';
        END IF;
        RETURN OLD;
    END $$;
    CREATE TRIGGER officer_event_unaltered BEFORE UPDATE ON officer_event
        FOR EACH ROW EXECUTE FUNCTION refuse('records of officers are never altered');
    CREATE TRIGGER officer_event_kept BEFORE DELETE ON officer_event
        FOR EACH ROW EXECUTE FUNCTION refuse('records of officers are never deleted');
    CREATE TRIGGER officer_event_whole BEFORE TRUNCATE ON officer_event
        FOR EACH STATEMENT EXECUTE FUNCTION refuse('records of officers are not emptied');
    CREATE TRIGGER seal_kept BEFORE DELETE ON seal FOR EACH ROW EXECUTE FUNCTION keep('id');
    CREATE TRIGGER seal_ended BEFORE UPDATE OF state, ended_at, end_reason, generation, code ON seal
        FOR EACH ROW WHEN (OLD.state IN ('refused', 'cancelled'))
        EXECUTE FUNCTION refuse('the life of this seal has ended');
    CREATE TRIGGER seal_retained_longer BEFORE UPDATE OF retain_until ON seal
        FOR EACH ROW WHEN (
            OLD.retain_until IS NOT NULL AND (NEW.retain_until IS NULL OR NEW.retain_until < OLD.retain_until)
        )
        EXECUTE FUNCTION refuse('what is kept is not kept shorter');
    CREATE TRIGGER seal_identity BEFORE UPDATE OF id, organisation, kind, applied_at, applicant ON seal
        FOR EACH ROW EXECUTE FUNCTION refuse('whose seal it is, and what it was applied for as, does not change');
    """
    + "".join(
        f"""
    CREATE TRIGGER {table}_unaltered BEFORE UPDATE ON {table}
        FOR EACH ROW EXECUTE FUNCTION refuse('records of seals are never altered');
    """
        for table in ("application", "imprint", "generation", "event", "document")
    )
    + "".join(
        f"""
    CREATE TRIGGER {table}_kept BEFORE DELETE ON {table} FOR EACH ROW EXECUTE FUNCTION keep('seal_id');
    CREATE TRIGGER {table}_whole BEFORE TRUNCATE ON {table}
        FOR EACH STATEMENT EXECUTE FUNCTION refuse('records of seals are not emptied');
    """
        for table in ("application", "imprint", "generation", "event", "document", "message")
    ),
)
