package main

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/opensandbox/operator/api/v1alpha1"
)

func TestOpenLoadsAreAPartForEachStrategy(t *testing.T) {
	o := options{rates: "10, 25", recycle: "Noop, Delete, Restart", lasts: 3 * time.Second}
	parts, err := o.openLoads()
	require.NoError(t, err)
	require.Len(t, parts, 3)

	l := load{rate: 25, lasts: 3 * time.Second}
	require.Equal(t, 75, l.count())
	require.Equal(t, time.Second, l.dueAfter(25))

	for message, bad := range map[string]options{
		`flag -rates: "x" is not a number`:                   {rates: "x", recycle: "Noop", lasts: time.Second},
		`flag -recycle: "Retain" is none of`:                 {rates: "1", recycle: "Retain", lasts: time.Second},
		"flag -lasts: 1.5s is not a whole number of seconds": {rates: "1", recycle: "Noop", lasts: 1500 * time.Millisecond},
	} {
		_, err := bad.openLoads()
		require.ErrorContains(t, err, message)
	}
}

func TestWhatIsDeliveredLateIsNotInTime(t *testing.T) {
	l := load{rate: 2, lasts: 2 * time.Second}
	took := []time.Duration{3 * time.Second, 3 * time.Second, 0, 2 * time.Second} // due after 0, 0.5, 1 and 1.5 s
	require.Equal(t, 2, l.inTime(took), "until a second after the load's end")
}

func TestCostIsForEachSandboxAndWithoutWhatComesAnyway(t *testing.T) {
	before := cost{requests: map[string]float64{"GET leases": 5, "PATCH pods": 100}, cpu: map[string]float64{"etcd": 1}}
	now := cost{requests: map[string]float64{"GET leases": 9, "PATCH pods": 300, "POST pods": 100}, cpu: map[string]float64{"etcd": 1.5}}
	spent := now.since(before, 100)
	require.Equal(t, map[string]float64{"PATCH pods": 2, "POST pods": 1}, spent.requests, "four reads of the lease for 100 sandboxes come anyway")
	require.Equal(t, map[string]float64{"etcd": 0.005}, spent.cpu)
}

func TestRequestsAreToldApart(t *testing.T) {
	require.Equal(t, "PATCH pods/status", requestName(map[string]string{"verb": "PATCH", "resource": "pods", "subresource": "status", "code": "200"}))
	require.Equal(t, "GET pods (404)", requestName(map[string]string{"verb": "GET", "resource": "pods", "code": "404"}))
	require.Equal(t, "GET other", requestName(map[string]string{"verb": "GET"}))
}

func TestTheTablesOfLoadsHaveBothSides(t *testing.T) {
	rows := []loadRow{{
		rate:     25,
		operator: loadResult{p50: 21, p90: 22, p99: 23, inTime: 50, requests: map[string]float64{"GET pools": 1, "POST pods": 2}},
		floor:    loadResult{p50: 11, p90: 12, p99: 13, inTime: 100, cpu: map[string]float64{"etcd": 6.25}},
	}}
	tables := loadTables(v1alpha1.RecycleNoop, 30*time.Second, rows, nil)
	for i, text := range []string{
		`\s25\s+21\.0\s+22\.0\s+23\.0\s+50\.0\s+11\.0\s+12\.0\s+13\.0\s+100\.0\s+1\.91\s+1\.77\s`,
		`GET pools\s+1\.00\s+0\.00\s+POST pods\s+2\.00\s+0\.00\s+all\s+3\.00\s+0\.00`,
		`etcd\s+0\.00\s+6\.25`,
	} {
		var out strings.Builder
		require.NoError(t, tables[i].WriteText(&out))
		require.Regexp(t, text, out.String())
		require.Empty(t, tables[i].Incomplete)
	}

	tables = loadTables(v1alpha1.RecycleNoop, 30*time.Second, rows, errors.New("at 50 a second"))
	require.Equal(t, "at 50 a second", tables[0].Incomplete)
}
