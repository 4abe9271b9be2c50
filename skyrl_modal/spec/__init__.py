"""What a user declares: one frozen, validated class per subject."""
