"""Ask the service in this container how it is: exit status 0 when the answer is 200."""

from __future__ import annotations

import http.client
import os
import sys


def main() -> int:
    """``healthcheck.py [PATH]``; the path is ``/health/ready`` unless another is named."""
    path = sys.argv[1] if len(sys.argv) > 1 else "/health/ready"
    port = int(os.environ.get("AUTH_SERVER_PORT") or 5000)
    # The service answers for its own names only, if it was given any.
    names = (os.environ.get("AUTH_ALLOWED_HOSTS") or "*").split(",")
    name = names[0].strip().replace("*.", "health.")
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=4)
    try:
        connection.request("GET", path, headers={} if name == "*" else {"Host": name})
        status = connection.getresponse().status
    except OSError as error:
        print(f"no answer: {error}")
        return 1
    print(f"{path} answered {status}")
    return 0 if status == 200 else 1


if __name__ == "__main__":
    sys.exit(main())
