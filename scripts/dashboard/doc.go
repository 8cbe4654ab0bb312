// Package dashboard holds the tests of the Grafana dashboard and of Prometheus' alert rules in
// scripts/packaging: every query is put to a real Prometheus that scraped a real run under attack, and what
// comes back is drawn as docs/dashboard.svg. It is no part of the product.
package dashboard
