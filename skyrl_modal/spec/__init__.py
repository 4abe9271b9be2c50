"""What a user declares: one frozen class for each subject, whose fields are validated when it is created."""
