"use strict";

// The address the reader used, so that the commands can be copied as they stand.
document.querySelector(".origin").textContent =
  window.location.href.replace(/[?#].*$/, "").replace(/\/$/, "");
