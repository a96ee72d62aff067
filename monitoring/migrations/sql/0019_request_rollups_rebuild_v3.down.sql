-- Makes the rollups of whole days (UTC) anew from request_logs. Called by: the removal of
-- development data; an operator who changed or deleted rows by hand. Needs the right to make
-- temporary tables.
-- Writers wait meanwhile: a row must be counted by the trigger or here, not by both.
DROP FUNCTION request_rollups_rebuild(date, date);
CREATE FUNCTION request_rollups_rebuild(first_day date, last_day date) RETURNS bigint
LANGUAGE plpgsql VOLATILE AS $$
DECLARE
    since timestamptz := first_day::timestamp AT TIME ZONE 'UTC';
    until timestamptz := (last_day + 1)::timestamp AT TIME ZONE 'UTC';
    counted bigint := 0;
    more bigint;
    step record;
BEGIN
    LOCK TABLE request_logs IN SHARE ROW EXCLUSIVE MODE;
    PERFORM pg_advisory_xact_lock(hashtext('request_rollups_compact'));
    DELETE FROM request_rollup_deltas d WHERE d.bucket >= since AND d.bucket < until;
    DELETE FROM request_usage_deltas d WHERE d.bucket >= since AND d.bucket < until;
    DELETE FROM request_user_deltas d WHERE d.bucket >= since AND d.bucket < until;
    DELETE FROM request_rollups r WHERE r.bucket >= since AND r.bucket < until;
    DELETE FROM request_usage r WHERE r.bucket >= since AND r.bucket < until;
    DELETE FROM request_users r WHERE r.bucket >= since AND r.bucket < until;

    -- The trigger itself counts them: there is one text that says how.
    CREATE TEMPORARY TABLE request_logs_counted (LIKE request_logs) ON COMMIT DROP;
    CREATE TRIGGER request_deltas_write AFTER INSERT ON request_logs_counted
        REFERENCING NEW TABLE AS inserted
        FOR EACH STATEMENT EXECUTE FUNCTION request_deltas_write_v2();
    FOR step IN
        SELECT s.day, s.day + interval '24 hours' AS next
        FROM generate_series(since, until - interval '24 hours', interval '24 hours') AS s (day)
    LOOP
        INSERT INTO request_logs_counted
        SELECT * FROM request_logs r WHERE r.request_time >= step.day AND r.request_time < step.next;
        GET DIAGNOSTICS more = ROW_COUNT;
        counted := counted + more;
        TRUNCATE request_logs_counted;
    END LOOP;
    DROP TABLE request_logs_counted;
    RETURN counted;
END
$$;
COMMENT ON FUNCTION request_rollups_rebuild(date, date) IS
    'Counts the rows of request_logs of these days (UTC, both included) anew and returns how many; writers of the log wait until it commits. Days whose rows are gone lose their figures.';
