"""/values: factorise numbers and keep the result, with its time to live, in the database of a replica of a class."""
