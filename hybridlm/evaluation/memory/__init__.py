"""The memory suite: small models of every mixer on tasks that ask for something seen long before."""
