cdef enum:
    MAX_JSON_BYTES = 6144  # what 8 KiB of base64url decode to

cdef bytes base64url_bytes(const unsigned char* text, Py_ssize_t n)
cdef dict decode_json_object(bytes text)
cdef bytes der_signature(bytes raw)
