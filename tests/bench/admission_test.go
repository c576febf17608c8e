package main

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestCreatesAreComparedWithTheFloor(t *testing.T) {
	const ms = time.Millisecond
	var asked admitted
	for _, took := range []time.Duration{8 * ms, 10 * ms} {
		asked.add(admitted{took: []time.Duration{took}, cpu: map[string]float64{"kube-apiserver": 0.02, "operator, leader": 0.003, "operator, standby": 0.001}})
	}
	table := admissionTable([]admitted{{took: []time.Duration{6 * ms}}, asked, {took: []time.Duration{3 * ms}}})
	require.InDeltaSlice(t, []float64{2, 9, 9.8, 3, 20, 4}, []float64(table.Rows[1].Values), 1e-9)
}
