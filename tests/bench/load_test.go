package main

import (
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/opensandbox/operator/api/v1alpha1"
)

func TestLoadsAreEveryStrategyAtEveryRate(t *testing.T) {
	o := options{rates: "10, 25", recycle: "Noop, Delete", lasts: 3 * time.Second}
	list, err := o.loads()
	require.NoError(t, err)
	require.Len(t, list, 4)
	require.Equal(t, load{pool: "load-delete-25", recycle: v1alpha1.RecycleDelete, rate: 25, lasts: 3 * time.Second}, list[3])
	require.Equal(t, 75, list[3].count())
	require.Equal(t, time.Second, list[3].dueAfter(25))

	for message, bad := range map[string]options{
		`flag -rates: "x" is not a number`:                    {rates: "x", recycle: "Noop", lasts: time.Second},
		`flag -recycle: "Restart" is neither Noop nor Delete`: {rates: "1", recycle: "Restart", lasts: time.Second},
		"flag -lasts: 1.5s is not a whole number of seconds":  {rates: "1", recycle: "Noop", lasts: 1500 * time.Millisecond},
	} {
		_, err := bad.loads()
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
	var out strings.Builder
	printLoads(&out, []loadRow{{
		Recycle: v1alpha1.RecycleNoop, Rate: 25,
		Operator: loadResult{P50: 21, P90: 22, P99: 23, Delivered: 0.5, Requests: map[string]float64{"GET pools": 1}},
		Floor:    loadResult{P50: 11, CPU: map[string]float64{"etcd": 6.25}},
	}})
	require.Regexp(t, `Noop\s+25\s+21\s+22\s+23\s+50\.0 %\s+11\s`, out.String())
	require.Regexp(t, `GET pools\s+1\.00\s+0\.00`, out.String())
	require.Regexp(t, `etcd\s+0\.00\s+6\.25`, out.String())
}
