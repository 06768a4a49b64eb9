// Headless Chromium, quiet: it asks nobody but the page's own origin. `CGN_CHROMIUM` is its path.
'use strict';

const { chromium } = require('playwright-core');

const FLAGS = ['--headless', '--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run', '--disable-background-networking', '--disable-component-update', '--disable-sync'];

function launch() {
  return chromium.launch({ executablePath: process.env.CGN_CHROMIUM ?? '/usr/bin/chromium', args: FLAGS });
}

module.exports = { launch };
