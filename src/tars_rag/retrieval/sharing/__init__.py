"""A store that several processes of one user have open: one holds it, and answers the others."""
