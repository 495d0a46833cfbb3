"""The registry's tables in SQLite, as they came about: one script for each version, never changed once released.

Truth values are 0 and 1; STRICT tables take no value of another type.
"""

from __future__ import annotations

from typing import Final

MIGRATIONS: Final = (
    """
    CREATE TABLE key (
        name TEXT PRIMARY KEY,
        key_id BLOB NOT NULL UNIQUE,
        token TEXT NOT NULL,
        algorithm TEXT NOT NULL,
        point BLOB,
        state TEXT NOT NULL CHECK (state IN ('creating', 'usable', 'disabled')),
        created_at TEXT NOT NULL,
        CHECK (state = 'creating' OR length(point) = 64)
    ) STRICT;
    CREATE TABLE account (
        name TEXT PRIMARY KEY,
        password_hash TEXT,
        uid INTEGER,
        certificate_sha256 TEXT,
        disabled INTEGER NOT NULL DEFAULT 0 CHECK (disabled IN (0, 1)),
        created_at TEXT NOT NULL
    ) STRICT;
    CREATE TABLE key_grant (
        account TEXT NOT NULL REFERENCES account (name),
        key_name TEXT NOT NULL,
        created_at TEXT NOT NULL,
        PRIMARY KEY (account, key_name)
    ) STRICT;
    """,
    """
    CREATE TABLE key_2 (
        name TEXT PRIMARY KEY,
        key_id BLOB NOT NULL UNIQUE,
        token TEXT NOT NULL,
        algorithm TEXT NOT NULL,
        point BLOB,
        state TEXT NOT NULL CHECK (state IN ('creating', 'usable', 'disabled', 'destroyed')),
        purpose TEXT NOT NULL CHECK (purpose IN ('signing', 'seal')),
        created_at TEXT NOT NULL,
        CHECK (state = 'creating' OR length(point) = 64)
    ) STRICT;
    INSERT INTO key_2 (name, key_id, token, algorithm, point, state, purpose, created_at)
        SELECT name, key_id, token, algorithm, point, state, 'signing', created_at FROM key;
    DROP TABLE key;
    ALTER TABLE key_2 RENAME TO key;
    CREATE INDEX key_signing ON key (name) WHERE purpose = 'signing';
    CREATE INDEX key_creating ON key (name) WHERE state = 'creating';

    CREATE TABLE organisation (
        code TEXT PRIMARY KEY,
        name TEXT NOT NULL,
        region TEXT NOT NULL
    ) STRICT;
    CREATE TABLE seal (
        id TEXT PRIMARY KEY,
        code TEXT NOT NULL,
        organisation TEXT NOT NULL REFERENCES organisation (code),
        kind TEXT NOT NULL,
        purpose TEXT NOT NULL,
        number INTEGER NOT NULL,
        name TEXT NOT NULL,
        region TEXT NOT NULL,
        holder TEXT NOT NULL,
        custodian TEXT NOT NULL,
        applicant TEXT NOT NULL,
        state TEXT NOT NULL,
        version INTEGER NOT NULL,
        generation INTEGER NOT NULL,
        key_name TEXT,
        valid_from TEXT,
        valid_to TEXT,
        applied_at TEXT NOT NULL,
        made_at TEXT,
        filed_at TEXT,
        confirmed_at TEXT,
        activated_at TEXT,
        last_used_at TEXT,
        ended_at TEXT,
        end_reason TEXT,
        replaces TEXT,
        replaced_by TEXT,
        holds_place INTEGER NOT NULL CHECK (holds_place IN (0, 1)),
        idle_from TEXT,
        expires_at TEXT,
        uncollected_from TEXT,
        retain_until TEXT
    ) STRICT;
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
        seal_id TEXT PRIMARY KEY REFERENCES seal (id),
        format TEXT NOT NULL,
        data BLOB NOT NULL,
        width_mm INTEGER NOT NULL,
        height_mm INTEGER NOT NULL,
        sm3 BLOB NOT NULL CHECK (length(sm3) = 32)
    ) STRICT;
    CREATE TABLE application (
        seal_id TEXT PRIMARY KEY REFERENCES seal (id),
        body TEXT NOT NULL
    ) STRICT;
    CREATE TABLE pending (
        seal_id TEXT PRIMARY KEY REFERENCES seal (id),
        key_name TEXT NOT NULL UNIQUE,
        certificate BLOB
    ) STRICT;
    CREATE TABLE generation (
        seal_id TEXT NOT NULL REFERENCES seal (id),
        number INTEGER NOT NULL,
        key_name TEXT NOT NULL,
        certificate BLOB NOT NULL,
        eseal BLOB NOT NULL,
        valid_from TEXT NOT NULL,
        valid_to TEXT NOT NULL,
        made_at TEXT NOT NULL,
        PRIMARY KEY (seal_id, number)
    ) STRICT;
    CREATE INDEX generation_key ON generation (key_name);
    CREATE TABLE event (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        seal_id TEXT NOT NULL REFERENCES seal (id),
        at TEXT NOT NULL,
        act TEXT NOT NULL,
        source TEXT,
        target TEXT NOT NULL,
        officer TEXT NOT NULL,
        approver TEXT,
        detail TEXT NOT NULL
    ) STRICT;
    CREATE INDEX event_seal ON event (seal_id, id);
    CREATE TABLE document (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        seal_id TEXT NOT NULL REFERENCES seal (id),
        kind TEXT NOT NULL,
        issued_at TEXT NOT NULL,
        body BLOB NOT NULL,
        signature BLOB NOT NULL,
        signer BLOB NOT NULL
    ) STRICT;
    CREATE INDEX document_seal ON document (seal_id, id);
    CREATE TABLE code_sequence (
        region TEXT PRIMARY KEY,
        given INTEGER NOT NULL CHECK (given BETWEEN 1 AND 99999999)
    ) STRICT;

    CREATE TABLE officer (
        name TEXT PRIMARY KEY,
        display_name TEXT NOT NULL,
        roles TEXT NOT NULL,
        password_hash TEXT NOT NULL,
        disabled INTEGER NOT NULL CHECK (disabled IN (0, 1)),
        created_at TEXT NOT NULL
    ) STRICT;
    CREATE TABLE officer_event (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        officer TEXT NOT NULL REFERENCES officer (name),
        at TEXT NOT NULL,
        act TEXT NOT NULL,
        done_by TEXT NOT NULL,
        detail TEXT NOT NULL
    ) STRICT;
    CREATE INDEX officer_event_officer ON officer_event (officer, id);
    CREATE TABLE proposal (
        id TEXT PRIMARY KEY,
        act TEXT NOT NULL,
        target TEXT NOT NULL,
        arguments TEXT NOT NULL,
        proposed_by TEXT NOT NULL,
        proposed_at TEXT NOT NULL,
        expires_at TEXT NOT NULL,
        state TEXT NOT NULL,
        decided_by TEXT,
        decided_at TEXT,
        outcome TEXT,
        CHECK (decided_by <> proposed_by OR state = 'rejected')
    ) STRICT;
    CREATE INDEX proposal_state ON proposal (state, id);
    CREATE INDEX proposal_expiry ON proposal (expires_at) WHERE state = 'open';
    CREATE INDEX proposal_target ON proposal (target);

    CREATE TABLE protection (
        seal_id TEXT PRIMARY KEY REFERENCES seal (id),
        password_hash TEXT NOT NULL,
        set_by TEXT NOT NULL,
        set_at TEXT NOT NULL,
        failures INTEGER NOT NULL,
        locked INTEGER NOT NULL CHECK (locked IN (0, 1)),
        generation INTEGER NOT NULL
    ) STRICT;
    CREATE INDEX protection_age ON protection (set_at);
    CREATE TABLE seal_grant (
        account TEXT NOT NULL REFERENCES account (name),
        seal_id TEXT NOT NULL REFERENCES seal (id),
        operations TEXT NOT NULL,
        daily_limit INTEGER NOT NULL CHECK (daily_limit >= 0),
        minute_limit INTEGER NOT NULL CHECK (minute_limit >= 0),
        valid_from TEXT,
        valid_to TEXT,
        sources TEXT NOT NULL,
        approval_pattern TEXT,
        created_at TEXT NOT NULL,
        PRIMARY KEY (account, seal_id)
    ) STRICT;
    CREATE INDEX seal_grant_seal ON seal_grant (seal_id, account);

    CREATE TABLE message (
        id TEXT PRIMARY KEY,
        kind TEXT NOT NULL,
        seal_id TEXT NOT NULL REFERENCES seal (id),
        region TEXT NOT NULL,
        body TEXT NOT NULL,
        created_at TEXT NOT NULL,
        due_at TEXT NOT NULL,
        attempts INTEGER NOT NULL,
        next_attempt_at TEXT NOT NULL,
        last_error TEXT,
        delivered_at TEXT,
        receipt TEXT,
        delay_ms INTEGER,
        CHECK ((delivered_at IS NULL) = (delay_ms IS NULL))
    ) STRICT;
    CREATE INDEX message_next ON message (next_attempt_at, id) WHERE delivered_at IS NULL;
    CREATE INDEX message_due ON message (due_at) WHERE delivered_at IS NULL;
    CREATE INDEX message_seal ON message (seal_id);
    CREATE INDEX message_counted ON message (created_at, kind, region, due_at, delivered_at, delay_ms);

    CREATE TABLE use_of_seal (
        seal_id TEXT NOT NULL REFERENCES seal (id),
        day TEXT NOT NULL,
        account TEXT NOT NULL,
        uses INTEGER NOT NULL,
        PRIMARY KEY (seal_id, day, account)
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE use_of_day (
        day TEXT NOT NULL,
        account TEXT NOT NULL,
        uses INTEGER NOT NULL,
        PRIMARY KEY (day, account)
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE reservation (
        seal_id TEXT NOT NULL REFERENCES seal (id),
        account TEXT NOT NULL,
        day TEXT NOT NULL,
        reserved INTEGER NOT NULL CHECK (reserved >= 0),
        PRIMARY KEY (seal_id, account, day)
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX reservation_day ON reservation (day);

    CREATE TRIGGER officer_event_unaltered BEFORE UPDATE ON officer_event
        BEGIN SELECT RAISE(ABORT, 'records of officers are never altered'); END;
    CREATE TRIGGER officer_event_kept BEFORE DELETE ON officer_event
        BEGIN SELECT RAISE(ABORT, 'records of officers are never deleted'); END;
    CREATE TRIGGER seal_kept BEFORE DELETE ON seal
        WHEN OLD.retain_until IS NULL OR OLD.retain_until > strftime('%Y-%m-%dT%H:%M:%f+00:00', 'now')
        BEGIN SELECT RAISE(ABORT, 'the records of a seal are kept for five years after its end'); END;
    CREATE TRIGGER seal_ended BEFORE UPDATE OF state, ended_at, end_reason, generation, code ON seal
        WHEN OLD.state IN ('refused', 'cancelled')
        BEGIN SELECT RAISE(ABORT, 'the life of this seal has ended'); END;
    CREATE TRIGGER seal_retained_longer BEFORE UPDATE OF retain_until ON seal
        WHEN OLD.retain_until IS NOT NULL AND (NEW.retain_until IS NULL OR NEW.retain_until < OLD.retain_until)
        BEGIN SELECT RAISE(ABORT, 'what is kept is not kept shorter'); END;
    CREATE TRIGGER seal_identity BEFORE UPDATE OF id, organisation, kind, applied_at, applicant ON seal
        BEGIN SELECT RAISE(ABORT, 'whose seal it is, and what it was applied for as, does not change'); END;
    """
    + "".join(
        f"""
    CREATE TRIGGER {table}_unaltered BEFORE UPDATE ON {table}
        BEGIN SELECT RAISE(ABORT, 'records of seals are never altered'); END;
    CREATE TRIGGER {table}_kept BEFORE DELETE ON {table}
        WHEN NOT EXISTS (
            SELECT 1 FROM seal WHERE id = OLD.seal_id
                AND retain_until <= strftime('%Y-%m-%dT%H:%M:%f+00:00', 'now')
        )
        BEGIN SELECT RAISE(ABORT, 'the records of a seal are kept for five years after its end'); END;
    """
        for table in ("application", "imprint", "generation", "event", "document")
    )
    + """
    CREATE TRIGGER message_kept BEFORE DELETE ON message
        WHEN NOT EXISTS (
            SELECT 1 FROM seal WHERE id = OLD.seal_id
                AND retain_until <= strftime('%Y-%m-%dT%H:%M:%f+00:00', 'now')
        )
        BEGIN SELECT RAISE(ABORT, 'the records of a seal are kept for five years after its end'); END;

    ANALYZE;
    DELETE FROM sqlite_stat1;
    """
    # What the planner is told of the indexes that a filter may choose between, as with a million seals: how many rows,
    # and how many for one value of the first column, of the first two … It goes by this in every registry, small or
    # large, so that a plan that was good is not another one tomorrow.
    + "".join(
        f"""
    INSERT INTO sqlite_stat1 (tbl, idx, stat) VALUES ('{table}', '{index}', '{counts}');
    """
        for table, index, counts in (
            ("seal", "seal_organisation", "1000000 5 1"),
            ("seal", "seal_custodian", "1000000 50 1"),
            ("seal", "seal_region", "1000000 1000 1"),
            ("seal", "seal_state", "1000000 100000 1"),
            ("seal", "seal_code", "950000 1"),
            ("seal", "seal_place", "950000 5 2 2 1 1"),
            ("seal", "seal_statutory", "200000 1"),
            ("seal", "seal_counted", "1000000 1000 200 20"),
            ("seal", "seal_counted_by_organisation", "1000000 5 2 1 1"),
            ("message", "message_seal", "1000000 2"),
            ("proposal", "proposal_target", "1000000 2"),
            ("proposal", "proposal_state", "1000000 100000 1"),
        )
    ),
)
