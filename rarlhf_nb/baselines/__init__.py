"""What RA-RLHF is compared with, a module each."""
