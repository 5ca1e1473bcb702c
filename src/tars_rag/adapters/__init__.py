"""What both framework rooms need: shared models and stores, threads, models of other libraries."""
