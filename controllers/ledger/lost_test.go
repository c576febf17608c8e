package ledger

import (
	"testing"

	"github.com/stretchr/testify/require"
)

// Lost and ended are two things: the sandbox that is lost is replaced, the one that
// has ended keeps its shard and its pod.
func TestASandboxIsLostOrHasEnded(t *testing.T) {
	x := box("x", 0)
	tests := map[string]struct {
		happens            func(*Pod)
		lost, ended, lives bool
	}{
		"a pod that runs":                               {happens: func(*Pod) {}, lives: true},
		"a pod that is not ready":                       {happens: func(p *Pod) { p.Ready = false }, lives: true},
		"a pod whose containers finished by themselves": {happens: func(p *Pod) { p.Finished = true }, ended: true, lives: true},
		"a pod that was evicted":                        {happens: func(p *Pod) { p.Finished, p.Disrupted = true, true }, lost: true},
		"a pod that is being deleted":                   {happens: func(p *Pod) { p.Terminating = true }, lost: true},
		"a pod that had ended and is being deleted":     {happens: func(p *Pod) { p.Finished, p.Terminating = true, true }, lost: true},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			b := newBook(t, "p")
			b.claim(x, 1)
			b.Observe(poolKey, with(ready("p"), test.happens))
			held := b.Allocation(poolKey, x.UID).Held
			require.Len(t, held, 1)
			require.Equal(t, test.lost, held[0].Lost(), "lost")
			require.Equal(t, test.ended, held[0].Ended(), "ended")
			require.Equal(t, test.lives, b.Usable(poolKey, "p"), "serves its holder")
			require.Equal(t, test.lives, b.Snapshot(poolKey).Pods[0].Live(), "counts towards the size of the pool")
		})
	}
}
