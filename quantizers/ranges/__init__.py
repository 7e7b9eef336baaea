"""Which interval of values codes are spread over: rules of one tensor, and with a memory."""
