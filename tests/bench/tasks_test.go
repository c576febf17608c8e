package main

import (
	"crypto/ed25519"
	"fmt"
	"net"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"

	"github.com/opensandbox/operator/api/v1alpha1"
	executorapi "github.com/opensandbox/operator/executor/api"
	executorclient "github.com/opensandbox/operator/executor/client"
	"github.com/opensandbox/operator/executor/token"
)

// podWith returns a pod with an address and an executor that has that key.
func podWith(ip, keys string) *corev1.Pod {
	pod := &corev1.Pod{}
	pod.UID = "uid"
	pod.Spec.InitContainers = []corev1.Container{{
		Name: v1alpha1.ExecutorContainerName, Env: []corev1.EnvVar{
			{Name: executorapi.EnvPublicKeys, Value: keys},
			{Name: executorapi.EnvTLSKey, Value: token.FormatSeed(ed25519.NewKeyFromSeed([]byte(strings.Repeat("k", ed25519.SeedSize))))},
		},
	}}
	pod.Status.PodIP = ip
	return pod
}

func newSigner(t *testing.T) *token.Signer {
	t.Helper()
	key, err := token.GenerateKey()
	require.NoError(t, err)
	return token.NewSigner(key)
}

// started returns the executor of such a pod, on a port of its own.
func started(t *testing.T, operator, floor *token.Signer) (*fleet, *executor) {
	t.Helper()
	f := fleetOf(t, operator, floor, "127.0.0.1")
	return f, f.executors[0]
}

// fleetOf returns the executors of pods with these addresses, on a port of their own.
func fleetOf(t *testing.T, operator, floor *token.Signer, addresses ...string) *fleet {
	t.Helper()
	f := &fleet{address: "0.0.0.0:0"}
	for _, address := range addresses {
		x, err := newExecutor(podWith(address, token.FormatPublicKeys(operator.PublicKey())), floor)
		require.NoError(t, err)
		f.executors = append(f.executors, x)
	}
	require.NoError(t, f.boot())
	t.Cleanup(f.close)
	_, port, err := net.SplitHostPort(f.calls.listener.Addr().String())
	require.NoError(t, err)
	for i, x := range f.executors {
		x.target.Address = net.JoinHostPort(addresses[i], port)
	}
	return f
}

func TestTheFloorFollowsATaskUntilItHasSucceeded(t *testing.T) {
	f, x := started(t, newSigner(t), newSigner(t))
	c := executorclient.New(executorclient.Options{})
	t.Cleanup(c.Close)
	require.NoError(t, x.run(t.Context(), c, "a"))
	list, err := c.List(t.Context(), x.target, executorapi.Cursor{}, 0)
	require.NoError(t, err)
	require.Equal(t, executorapi.Succeeded, list.Tasks[0].State)
	// One that tells the boot id, the start, a poll or two, and ours.
	require.InDelta(t, 4.5, f.requests.Load(), 0.5)
}

func TestExecutorsTakeTokensOfTheOperatorAndTheFloorOnly(t *testing.T) {
	operator, floor := newSigner(t), newSigner(t)
	_, x := started(t, operator, floor)
	for name, signer := range map[string]*token.Signer{"operator": operator, "floor": floor, "nobody": newSigner(t)} {
		c := executorclient.New(executorclient.Options{})
		t.Cleanup(c.Close)
		target := x.target
		target.Signer = signer
		_, err := c.Start(t.Context(), target, name, x.request)
		require.Equal(t, name == "nobody", executorclient.IsUnauthorized(err), "%s: %v", name, err)
	}
}

func TestExecutorsThatBootAreKnownByNobody(t *testing.T) {
	f, x := started(t, newSigner(t), newSigner(t))
	c := executorclient.New(executorclient.Options{})
	t.Cleanup(c.Close)
	require.NoError(t, x.run(t.Context(), c, "a"))
	require.NoError(t, f.boot())
	require.Zero(t, f.requests.Load())
	list, err := c.List(t.Context(), x.target, executorapi.Cursor{}, 0)
	require.NoError(t, err)
	require.Empty(t, list.Tasks)
	require.Equal(t, int64(2), f.requests.Load(), "the first call was refused: the boot id is another one")
}

func TestOnlyLoopbackAddressesAreListenedOn(t *testing.T) {
	_, err := newExecutor(podWith("10.0.0.7", token.FormatPublicKeys(make(ed25519.PublicKey, ed25519.PublicKeySize))), newSigner(t))
	require.ErrorContains(t, err, "10.0.0.7")
}

func TestABatchOfTheFloorHasTakenUntilTheLastOfItsTasks(t *testing.T) {
	operator, floor := newSigner(t), newSigner(t)
	f := fleetOf(t, operator, floor, "127.0.0.1", "127.0.0.2", "127.0.0.3", "127.0.0.4")
	b := &bench{fleet: f}
	for i, x := range f.executors {
		x.target.PodUID = fmt.Sprint(i) // runTaskFloor boots them anew
	}
	result, err := b.runTaskFloor(t.Context(), scenario{objects: 2, replicas: 2}, 1)
	require.NoError(t, err)
	require.Len(t, result.took, 2)
	require.Less(t, taskTakes, result.took[0])
	require.LessOrEqual(t, result.took[0], result.took[1])
	require.InDelta(t, 3.5, result.cost, 0.5, "calls for each task, not for each batch")
}
