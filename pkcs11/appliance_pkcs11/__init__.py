"""The signer side of cloud-seal: small processes, each owning one PKCS#11 module, its PIN and its sessions.

Not for anything that talks to the network, and it never imports ``appliance``.
"""
