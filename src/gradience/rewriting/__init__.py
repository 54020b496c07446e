"""What the verbs that write or compare adapters share: adapters opened as sides, and the folder that is written."""
