"""The office: officers, what they do to seals, and what follows from it.

``Office`` is its face. Behind it: ``desk``, where every act ends in one transaction; ``acts``, what one officer does
alone; ``proposals``, what takes two; ``making`` and ``critical``, what those are; ``ending``, how a seal ends;
``people``; ``outbox``, what is told to the public security; ``sweeper``, what time does; ``stamping``, time stamps.
"""

from appliance.office.acts import Application
from appliance.office.keys import SealKeys
from appliance.office.office import Office, OfficeParts
from appliance.office.stamping import authority_application
from appliance.office.sweeper import Swept

__all__ = ["Application", "Office", "OfficeParts", "SealKeys", "Swept", "authority_application"]
