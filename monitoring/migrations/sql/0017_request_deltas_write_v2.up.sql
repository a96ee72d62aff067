-- What one statement adds to request_logs, as deltas in the same transaction: whoever writes, by
-- COPY, INSERT or psql, is counted, and a rollback takes the deltas with it. Only inserts, never
-- an upsert, so that writers do not wait for one another.
-- A row that is written straight into a partition fires nothing: nobody may do that.
-- Who calls without a key that is known and is refused is a stranger: these calls are counted once
-- more by themselves, so that whoever asks for a share of failures can leave them out.
DROP TRIGGER request_deltas_write ON request_logs;
DROP FUNCTION request_deltas_write_v1();
CREATE FUNCTION request_deltas_write_v2() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    nobody CONSTANT uuid := '00000000-0000-0000-0000-000000000000';
    strangers CONSTANT uuid := 'ffffffff-ffff-ffff-ffff-ffffffffffff';
    origin CONSTANT timestamptz := '2000-01-01 00:00:00+00';
BEGIN
    INSERT INTO request_rollup_deltas (
        tenant_id, bucket, requests, errors, sum_ms, max_ms, bytes_in, bytes_out, bins, counts
    )
    SELECT
        coalesce(s.caller, nobody), s.bucket, sum(s.requests), sum(s.errors), sum(s.sum_ms),
        max(s.max_ms), sum(s.bytes_in), sum(s.bytes_out), array_agg(s.bin ORDER BY s.bin),
        array_agg(s.requests ORDER BY s.bin)
    FROM (
        SELECT
            grouping(r.caller) = 1 AS is_all, r.caller,
            date_bin('5 minutes', r.request_time, origin) AS bucket,
            request_duration_bin(request_duration_ms(r.duration_ms)) AS bin,
            count(*) AS requests,
            count(*) FILTER (WHERE r.status_code >= 400) AS errors,
            sum(request_duration_ms(r.duration_ms)) AS sum_ms,
            max(request_duration_ms(r.duration_ms)) AS max_ms,
            sum(r.request_size_bytes) AS bytes_in,
            sum(r.response_size_bytes) AS bytes_out
        FROM (
            SELECT
                i.*,
                CASE
                    WHEN i.tenant_id IS NULL AND i.api_key_id IS NULL
                        AND i.status_code BETWEEN 400 AND 499 THEN strangers
                    ELSE i.tenant_id
                END AS caller
            FROM inserted i
        ) r
        GROUP BY 3, 4, GROUPING SETS ((r.caller), ())
    ) s
    WHERE s.is_all OR s.caller <> nobody
    GROUP BY 1, 2;

    INSERT INTO request_usage_deltas (
        tenant_id, bucket, server_id, tool_name, requests, errors, sum_ms, max_ms, bytes_in,
        bytes_out, first_seen, last_seen
    )
    SELECT
        coalesce(r.tenant_id, nobody), date_bin('1 hour', r.request_time, origin),
        coalesce(r.target_server_id, nobody), r.tool_name, count(*),
        count(*) FILTER (WHERE r.status_code >= 400), sum(request_duration_ms(r.duration_ms)),
        max(request_duration_ms(r.duration_ms)), sum(r.request_size_bytes),
        sum(r.response_size_bytes), min(r.request_time), max(r.request_time)
    FROM inserted r
    GROUP BY 1, 2, 3, 4;

    INSERT INTO request_user_deltas (tenant_id, bucket, user_id, first_seen, last_seen)
    SELECT
        r.tenant_id, date_bin('1 hour', r.request_time, origin), r.user_id, min(r.request_time),
        max(r.request_time)
    FROM inserted r
    WHERE r.tenant_id IS NOT NULL AND r.user_id IS NOT NULL
    GROUP BY 1, 2, 3;
    RETURN NULL;
END
$$;
COMMENT ON FUNCTION request_deltas_write_v2() IS
    'Adds what a statement wrote to request_logs to the deltas of the rollups.';

CREATE TRIGGER request_deltas_write AFTER INSERT ON request_logs
    REFERENCING NEW TABLE AS inserted
    FOR EACH STATEMENT EXECUTE FUNCTION request_deltas_write_v2();
