def adapter_for(name, state, obj):
    return None
