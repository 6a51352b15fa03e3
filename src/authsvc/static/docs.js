"use strict";

const reference = document.getElementById("reference");

window.ui = SwaggerUIBundle({
  domNode: reference,
  url: reference.dataset.openapiUrl,
  presets: [SwaggerUIBundle.presets.apis],
  layout: "BaseLayout",
  deepLinking: true,
  displayRequestDuration: true,
  defaultModelsExpandDepth: -1,
  filter: true,
  // Nothing is asked of another host, and a key typed in here is gone with the page.
  validatorUrl: null,
  persistAuthorization: false,
});
