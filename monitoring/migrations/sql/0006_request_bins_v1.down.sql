DROP FUNCTION request_bin_ms(integer);
DROP FUNCTION request_duration_bin(double precision);
DROP FUNCTION request_duration_ms(double precision);
