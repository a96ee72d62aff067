-- Where the window of a summary begins. Called by: the summary functions of requests.
-- plpgsql, because SQL cannot raise. Above 100 years the answer is "all that there is", so that
-- no number of hours leaves the range of timestamptz.
CREATE FUNCTION summary_window_start(hours integer) RETURNS timestamptz
LANGUAGE plpgsql STABLE PARALLEL SAFE SECURITY INVOKER AS $$
BEGIN
    IF hours IS NULL OR hours <= 0 THEN
        RAISE EXCEPTION 'hours must be 1 or more, not %', coalesce(hours::text, 'NULL')
            USING ERRCODE = 'invalid_parameter_value';
    END IF;
    RETURN statement_timestamp() - make_interval(hours => least(hours, 876000));
END
$$;
COMMENT ON FUNCTION summary_window_start(integer) IS
    'The time that many hours before this statement; an error for hours <= 0.';
