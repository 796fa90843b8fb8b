"""Every role at every route, with good and bad tokens, own and other records: is it answered as the document says?"""
