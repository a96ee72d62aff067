-- The scale of the histograms of durations. Called by: the functions of the rollups.
-- Bins grow by 2 %: the middle of a bin is less than 1 % from every duration in it (the scale of
-- DDSketch, https://arxiv.org/abs/1908.10693), so a percentile made of middles is, too.
-- Plain expressions, so that the planner inlines them.
CREATE FUNCTION request_duration_ms(duration double precision) RETURNS double precision
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT CASE WHEN duration > '-Infinity' AND duration < 'Infinity' THEN duration ELSE 0 END
$$;
COMMENT ON FUNCTION request_duration_ms(double precision) IS
    'A duration as sums count it: what is no number (NaN, infinite) is 0, or one row would spoil every sum for good.';

CREATE FUNCTION request_duration_bin(duration double precision) RETURNS smallint
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT ceil(ln(least(greatest(duration, 0.01), 1e9) / 0.01) / ln(1.02::double precision))::smallint
$$;
COMMENT ON FUNCTION request_duration_bin(double precision) IS
    'The bin of a duration in milliseconds: bin n holds what is above 0.01 * 1.02^(n-1) and up to 0.01 * 1.02^n; bin 0 all up to 0.01, bin 1280 all from eleven days on.';

CREATE FUNCTION request_bin_ms(bin integer) RETURNS double precision
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT 0.01 * power(1.02::double precision, bin) * 2 / 2.02
$$;
COMMENT ON FUNCTION request_bin_ms(integer) IS
    'The milliseconds that stand for a bin: less than 1 % from all that it holds, for bin 0 less than 0.01 ms.';
