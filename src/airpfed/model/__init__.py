"""Models: a frozen backbone, adapter blocks with scopes, the one order of parameters, PEFT export."""
