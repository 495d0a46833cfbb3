"""The client library: ``Client`` for asyncio, ``SyncClient`` for everybody else.

For: approval systems that sign and verify through the appliance, one item or a hundred million.
Not for: managing keys and accounts (the officers' interface), keeping files.
"""

from appliance.client.asynchronous import DEFAULT_DEPTH, Client, Receipt, receipts
from appliance.client.blocking import SyncClient
from appliance.client.seals import SealReceipt, seal_receipts

__all__ = [
    "DEFAULT_DEPTH",
    "Client",
    "Receipt",
    "SealReceipt",
    "SyncClient",
    "receipts",
    "seal_receipts",
]
