// Package webhook is admission: it defaults and validates Pools and BatchSandboxes
// where that needs code, and keeps the certificate it is served with.
//
// It decides nothing that the reconcilers rely on. Webhooks fail open: what is
// checked here is checked again by the reconcilers, which show it as a condition, and
// the CEL rules of the CRDs hold without them. cmd/manager registers it in every
// replica of the operator, leading or not.
package webhook
