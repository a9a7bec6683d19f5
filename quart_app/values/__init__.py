"""/values: factorise numbers, and keep each result for its time to live with a replica of the class asked for."""
