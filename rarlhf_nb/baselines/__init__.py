"""What RA-RLHF is compared with, besides the base model and RLHF: one module per method; none imports another's."""
