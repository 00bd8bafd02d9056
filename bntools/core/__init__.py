"""The ground floor: it imports torch and itself, never a verb."""
