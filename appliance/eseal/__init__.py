"""Electronic seals in the national format: reading, writing and verifying them, pure over bytes.

``structures`` knows the formats, ``chains`` certificates and trust, ``timestamps`` tokens, ``verification`` derives
a verdict; ``der`` is what they are all written in.
"""
