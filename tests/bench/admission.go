package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"

	"github.com/opensandbox/operator/api/v1alpha1"
	"github.com/opensandbox/operator/tests/bench/results"
)

const (
	admissionPool = "admission"
	// admissionBlock is how many creates of one kind follow each other: CPU is read between blocks.
	admissionBlock = 25
)

// admitting is one kind of create, for what the validating webhook costs. The operator's webhook
// looks at every BatchSandbox that is more than a number of sandboxes of a pool; a match condition
// has the API server leave it out for the others. So the same BatchSandbox is created with and
// without a time at which it expires: with one, the webhook is asked, and nothing else differs but
// that time. The floor is the create of an object of the same schema, whose kind no webhook and no
// operator knows.
type admitting struct {
	name  string
	asked bool
	floor bool
}

var admissions = []admitting{
	{name: "pooled, webhook not asked"},
	{name: "pooled, with a time to expire: webhook asked", asked: true},
	{name: "floor: a kind without webhook and operator", floor: true},
}

// admitted is what the creates of one kind have taken.
type admitted struct {
	took []time.Duration
	// cpu in seconds, by process, from each create until the object is gone.
	cpu map[string]float64
}

// admission is the part that creates BatchSandboxes one after the other, in blocks of one kind that
// take turns. Only the create is timed; each was delivered and is gone before the next.
func (o *options) admission() ([]part, error) {
	if o.creates <= 0 {
		return nil, nil
	}
	return []part{func(ctx context.Context, b *bench) ([]results.Table, error) {
		if err := b.fill(ctx, []poolSize{{name: admissionPool, size: 1}}); err != nil {
			return nil, err
		}
		m := b.meter()
		sums := make([]admitted, len(admissions))
		// A first block of each warms the connections up.
		for block := range 1 + (o.creates+admissionBlock-1)/admissionBlock {
			for i := range admissions {
				at := (i + block) % len(admissions)
				result, err := b.admit(ctx, m, admissions[at], block, min(o.creates, admissionBlock))
				if err != nil {
					return nil, fmt.Errorf("creating BatchSandboxes, %s: %w", admissions[at].name, err)
				}
				if block > 0 {
					sums[at].add(result)
				}
			}
		}
		return []results.Table{admissionTable(sums)}, nil
	}}, nil
}

// admissionTable has a row for each kind; the last is the floor.
func admissionTable(sums []admitted) results.Table {
	table := results.Table{
		ID: "admission", Title: "What the validating webhook adds to a create",
		Note: "Milliseconds of the create alone, one at a time, and of CPU for each from its create until it is gone.\n" +
			"Without webhooks, as where the operator runs outside of the cluster, the first two rows are alike.",
		Keys: []string{"create"},
		Columns: []results.Column{
			{Name: "creates"}, {Name: "p50", Unit: "ms", Digits: 2}, {Name: "p90", Unit: "ms", Digits: 2}, {Name: "ratio", Digits: 2},
			{Name: "CPU of the API server", Unit: "ms", Digits: 1}, {Name: "CPU of the operator", Unit: "ms", Digits: 1},
		},
	}
	least := quantile(sums[len(sums)-1].took, 0.5)
	for i, sum := range sums {
		each := 1000 / float64(len(sum.took))
		p50 := quantile(sum.took, 0.5)
		table.Add([]string{admissions[i].name}, float64(len(sum.took)), ms(p50), ms(quantile(sum.took, 0.9)), float64(p50)/float64(least),
			sum.cpu["kube-apiserver"]*each, (sum.cpu["operator, leader"]+sum.cpu["operator, standby"])*each)
	}
	return table
}

func (a *admitted) add(more admitted) {
	a.took = append(a.took, more.took...)
	if a.cpu == nil {
		a.cpu = map[string]float64{}
	}
	for name, seconds := range more.cpu {
		a.cpu[name] += seconds
	}
}

// admit runs one block.
func (b *bench) admit(ctx context.Context, m *meter, kind admitting, block, n int) (result admitted, err error) {
	before, err := m.cpu(ctx)
	if err != nil {
		return result, err
	}
	for i := range n {
		took, err := b.admitOne(ctx, kind, fmt.Sprintf("admission-%d-%d", block, i))
		if err != nil {
			return result, err
		}
		result.took = append(result.took, took)
	}
	after, err := m.cpu(ctx)
	result.cpu = per(after, before, 1, 0)
	return result, err
}

// admitOne creates one object and waits until it was delivered, if it is to be, and is gone.
func (b *bench) admitOne(ctx context.Context, kind admitting, name string) (took time.Duration, err error) {
	ctx, cancel := context.WithTimeout(ctx, roundPatience)
	defer cancel()
	bs := &v1alpha1.BatchSandbox{
		ObjectMeta: metav1.ObjectMeta{Namespace: b.namespace, Name: name},
		Spec:       v1alpha1.BatchSandboxSpec{Replicas: ptr.To[int32](1), PoolRef: admissionPool},
	}
	if kind.floor {
		start := time.Now()
		err := b.floor.Create(ctx, bs)
		took = time.Since(start)
		return took, errors.Join(err, b.empty(ctx, b.floor, b.namespace))
	}
	if kind.asked {
		bs.Spec.ExpireTime = ptr.To(metav1.NewTime(time.Now().Add(24 * time.Hour)))
	}
	c, w, err := b.collect(ctx, b.api, name)
	if err != nil {
		return 0, err
	}
	start := time.Now()
	err = b.api.Create(ctx, bs)
	took = time.Since(start)
	if err != nil {
		w.Stop()
		return took, err
	}
	return took, errors.Join(c.follow(ctx, w, b.api, b.namespace), b.empty(ctx, b.api, b.namespace))
}
