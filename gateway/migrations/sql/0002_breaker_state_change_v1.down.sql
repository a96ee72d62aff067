DROP TRIGGER gateway_breaker_state_change ON circuit_breakers;
DROP FUNCTION gateway_breaker_state_change_v1();
