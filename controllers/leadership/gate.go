package leadership

import (
	"context"
	"fmt"
)

// Gate is closed until the ledger is rebuilt.
type Gate struct{ opened chan struct{} }

// NewGate returns a closed gate.
func NewGate() *Gate { return &Gate{opened: make(chan struct{})} }

// Open opens the gate, once.
func (g *Gate) Open() { close(g.opened) }

// Wait returns when the gate is open, or with an error when ctx ends before.
func (g *Gate) Wait(ctx context.Context) error {
	select {
	case <-g.opened:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("waiting for the ledger to be rebuilt: %w", context.Cause(ctx))
	}
}
