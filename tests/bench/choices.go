package main

import (
	"context"
	"fmt"
	"strings"

	"github.com/opensandbox/operator/api/v1alpha1"
)

const (
	// choicePools is how the names of the pools begin that may be chosen.
	choicePools = "choice-"
	// choiceLabel is what the pools have that may be chosen.
	choiceLabel = "bench.opensandbox.io/choice"
	// choicePods is how many pods each of them has.
	choicePods = 2
	// mostChoosing is how many BatchSandboxes choose at once, at most.
	mostChoosing = 100
)

// chosenPools is the part that has pools chosen.
func (o *options) chosenPools() ([]part, error) {
	if o.choices == 0 {
		return nil, nil
	}
	if o.choices < 2 {
		return nil, fmt.Errorf("flag -choices: of %d pools there is none to choose", o.choices)
	}
	var p []poolSize
	for i := range o.choices {
		p = append(p, poolSize{name: fmt.Sprint(choicePools, i), size: choicePods})
	}
	var list []scenario
	for _, objects := range []int{1, min(mostChoosing, o.choices*choicePods)} {
		list = append(list, scenario{
			name: fmt.Sprintf("%d of 1, of %d pools", objects, o.choices), pool: p[0].name, others: p[1:],
			objects: objects, replicas: 1, chooses: true, floor: (*bench).runByName,
		})
	}
	return o.compared(ofChoices, p, list), nil
}

// chosenFrom says that the pool is one of those that may be chosen.
func (p *poolSize) chosenFrom() bool { return strings.HasPrefix(p.name, choicePools) }

// chosen makes the spec one that has its pool chosen.
func chosen(spec *v1alpha1.BatchSandboxSpec) {
	spec.PoolRef, spec.PoolSelector = v1alpha1.AnyPool, map[string]string{choiceLabel: ""}
}

// runByName has the operator deliver the same from the pools that it has chosen last, by their
// names: as many pools have to show that they have fewer idle pods.
func (b *bench) runByName(ctx context.Context, s scenario, round int) (sample, error) {
	s.chooses = false
	for i := range b.payloads[s.name] {
		s.named = append(s.named, b.payloads[s.name][i].Spec.PoolRef)
	}
	return b.runOperator(ctx, s, round)
}
