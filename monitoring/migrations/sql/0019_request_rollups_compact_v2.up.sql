-- Moves deltas into the rollups. Called by: the worker, every few seconds.
-- One at a time (advisory lock), so that its upserts meet nobody; each statement takes deltas and
-- adds them at once, so that no snapshot ever sees them twice or not at all.
-- Usage goes two ways: by tenant and hour, and by day for all tenants together, which is what a
-- ranking over a week reads.
DROP FUNCTION request_rollups_compact(integer);
CREATE FUNCTION request_rollups_compact(max_deltas integer) RETURNS bigint
LANGUAGE plpgsql VOLATILE AS $$
DECLARE
    origin CONSTANT timestamptz := '2000-01-01 00:00:00+00';
    moved bigint := 0;
    taken bigint;
BEGIN
    IF NOT pg_try_advisory_xact_lock(hashtext('request_rollups_compact')) THEN
        RETURN 0;
    END IF;

    WITH taken AS (
        DELETE FROM request_rollup_deltas
        WHERE id <= (
            SELECT max(f.id)
            FROM (SELECT d.id FROM request_rollup_deltas d ORDER BY d.id LIMIT max_deltas) f
        )
        RETURNING *
    ),
    added AS (
        INSERT INTO request_rollups AS kept (
            tenant_id, minutes, bucket, requests, errors, sum_ms, max_ms, bytes_in, bytes_out,
            bins, counts
        )
        SELECT
            s.tenant_id, s.minutes, s.bucket, sum(s.requests), sum(s.errors), sum(s.sum_ms),
            max(s.max_ms), sum(s.bytes_in), sum(s.bytes_out), array_agg(s.bin ORDER BY s.bin),
            array_agg(s.requests::bigint ORDER BY s.bin)
        FROM (
            -- A line a bin; the figures of a whole delta stand in the line of its first.
            SELECT
                t.tenant_id, tier.minutes, date_bin(tier.width, t.bucket, origin) AS bucket,
                h.bin, sum(h.requests) AS requests,
                coalesce(sum(t.errors) FILTER (WHERE h.line = 1), 0) AS errors,
                coalesce(sum(t.sum_ms) FILTER (WHERE h.line = 1), 0) AS sum_ms,
                max(t.max_ms) AS max_ms,
                coalesce(sum(t.bytes_in) FILTER (WHERE h.line = 1), 0) AS bytes_in,
                coalesce(sum(t.bytes_out) FILTER (WHERE h.line = 1), 0) AS bytes_out
            FROM taken t
            CROSS JOIN LATERAL unnest(t.bins, t.counts)
                WITH ORDINALITY AS h (bin, requests, line)
            CROSS JOIN (
                VALUES (5::smallint, interval '5 minutes'), (60, '1 hour'), (1440, '1 day')
            ) AS tier (minutes, width)
            GROUP BY 1, 2, 3, 4
        ) s
        GROUP BY 1, 2, 3
        ON CONFLICT (tenant_id, minutes, bucket) DO UPDATE SET
            requests = kept.requests + excluded.requests,
            errors = kept.errors + excluded.errors,
            sum_ms = kept.sum_ms + excluded.sum_ms,
            max_ms = greatest(kept.max_ms, excluded.max_ms),
            bytes_in = kept.bytes_in + excluded.bytes_in,
            bytes_out = kept.bytes_out + excluded.bytes_out,
            (bins, counts) = (
                SELECT array_agg(m.bin ORDER BY m.bin), array_agg(m.requests ORDER BY m.bin)
                FROM (
                    SELECT u.bin, sum(u.requests)::bigint AS requests
                    FROM unnest(kept.bins || excluded.bins, kept.counts || excluded.counts)
                        AS u (bin, requests)
                    GROUP BY u.bin
                ) m
            )
    )
    SELECT count(*) INTO taken FROM taken;
    moved := moved + taken;

    WITH taken AS (
        DELETE FROM request_usage_deltas
        WHERE id <= (
            SELECT max(f.id)
            FROM (SELECT d.id FROM request_usage_deltas d ORDER BY d.id LIMIT max_deltas) f
        )
        RETURNING *
    ),
    added AS (
        INSERT INTO request_usage AS kept (
            tenant_id, bucket, server_id, tool_name, requests, errors, sum_ms, max_ms, bytes_in,
            bytes_out, first_seen, last_seen
        )
        SELECT
            t.tenant_id, t.bucket, t.server_id, t.tool_name, sum(t.requests), sum(t.errors),
            sum(t.sum_ms), max(t.max_ms), sum(t.bytes_in), sum(t.bytes_out), min(t.first_seen),
            max(t.last_seen)
        FROM taken t
        GROUP BY 1, 2, 3, 4
        ON CONFLICT (tenant_id, bucket, server_id, tool_name) DO UPDATE SET
            requests = kept.requests + excluded.requests,
            errors = kept.errors + excluded.errors,
            sum_ms = kept.sum_ms + excluded.sum_ms,
            max_ms = greatest(kept.max_ms, excluded.max_ms),
            bytes_in = kept.bytes_in + excluded.bytes_in,
            bytes_out = kept.bytes_out + excluded.bytes_out,
            first_seen = least(kept.first_seen, excluded.first_seen),
            last_seen = greatest(kept.last_seen, excluded.last_seen)
    ),
    added_to_days AS (
        INSERT INTO request_tool_days AS kept (
            day, server_id, tool_name, requests, errors, sum_ms
        )
        SELECT
            (t.bucket AT TIME ZONE 'UTC')::date, t.server_id, t.tool_name, sum(t.requests),
            sum(t.errors), sum(t.sum_ms)
        FROM taken t
        WHERE t.tool_name <> ''
        GROUP BY 1, 2, 3
        ON CONFLICT (day, server_id, tool_name) DO UPDATE SET
            requests = kept.requests + excluded.requests,
            errors = kept.errors + excluded.errors,
            sum_ms = kept.sum_ms + excluded.sum_ms
    )
    SELECT count(*) INTO taken FROM taken;
    moved := moved + taken;

    WITH taken AS (
        DELETE FROM request_user_deltas
        WHERE id <= (
            SELECT max(f.id)
            FROM (SELECT d.id FROM request_user_deltas d ORDER BY d.id LIMIT max_deltas) f
        )
        RETURNING *
    ),
    added AS (
        INSERT INTO request_users AS kept (tenant_id, bucket, user_id, first_seen, last_seen)
        SELECT t.tenant_id, t.bucket, t.user_id, min(t.first_seen), max(t.last_seen)
        FROM taken t
        GROUP BY 1, 2, 3
        ON CONFLICT (tenant_id, bucket, user_id) DO UPDATE SET
            first_seen = least(kept.first_seen, excluded.first_seen),
            last_seen = greatest(kept.last_seen, excluded.last_seen)
        -- Most users are seen again and again: only what changes is written.
        WHERE kept.first_seen > excluded.first_seen OR kept.last_seen < excluded.last_seen
    )
    SELECT count(*) INTO taken FROM taken;
    RETURN moved + taken;
END
$$;
COMMENT ON FUNCTION request_rollups_compact(integer) IS
    'Moves up to that many deltas of each kind into the rollups and returns how many it moved; 0 when there are none or another session does it.';
