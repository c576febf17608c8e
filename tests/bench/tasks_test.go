package main

import (
	"crypto/ed25519"
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
		Name: v1alpha1.ExecutorContainerName, Env: []corev1.EnvVar{{Name: executorapi.EnvPublicKeys, Value: keys}},
	}}
	pod.Status.PodIP = ip
	pod.Status.ContainerStatuses = []corev1.ContainerStatus{{Name: "sandbox-container", ContainerID: "containerd://" + strings.Repeat("a", 64)}}
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
	x, err := newExecutor(podWith("127.0.0.1", token.FormatPublicKeys(operator.PublicKey())), floor)
	require.NoError(t, err)
	x.target.Address = "127.0.0.1:0"
	f := &fleet{executors: []*executor{x}}
	require.NoError(t, f.boot())
	t.Cleanup(f.close)
	return f, x
}

func TestTheFloorFollowsATaskUntilItHasSucceeded(t *testing.T) {
	f, x := started(t, newSigner(t), newSigner(t))
	c := executorclient.New(executorclient.Options{})
	t.Cleanup(c.Close)
	require.NoError(t, x.run(t.Context(), c, "a"))
	list, err := c.List(t.Context(), x.target, executorapi.Cursor{}, 0)
	require.NoError(t, err)
	require.Equal(t, executorapi.Succeeded, list.Tasks[0].State)
	// The start, once more with the boot id that was told, a poll or two, and ours.
	require.InDelta(t, 4.5, f.calls.Load(), 0.5)
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

func TestATaskForTheContainerOfAnotherPodIsRefused(t *testing.T) {
	_, x := started(t, newSigner(t), newSigner(t))
	c := executorclient.New(executorclient.Options{})
	t.Cleanup(c.Close)
	request := x.request
	request.ContainerID = "containerd://" + strings.Repeat("b", 64)
	_, err := c.Start(t.Context(), x.target, "a", request)
	require.Equal(t, executorapi.ProblemContainerNotFound, executorclient.Reason(err))
}

func TestExecutorsThatBootAreKnownByNobody(t *testing.T) {
	f, x := started(t, newSigner(t), newSigner(t))
	c := executorclient.New(executorclient.Options{})
	t.Cleanup(c.Close)
	require.NoError(t, x.run(t.Context(), c, "a"))
	require.NoError(t, f.boot())
	require.Zero(t, f.calls.Load())
	list, err := c.List(t.Context(), x.target, executorapi.Cursor{}, 0)
	require.NoError(t, err)
	require.Empty(t, list.Tasks)
	require.Equal(t, int64(2), f.calls.Load(), "the first call was refused: the boot id is another one")
}

func TestOnlyLoopbackAddressesAreListenedOn(t *testing.T) {
	_, err := newExecutor(podWith("10.0.0.7", token.FormatPublicKeys(make(ed25519.PublicKey, ed25519.PublicKeySize))), newSigner(t))
	require.ErrorContains(t, err, "10.0.0.7")
}

func TestSizesAreNumbersWithinBounds(t *testing.T) {
	tests := map[string]struct {
		list string
		want []int32
		err  string
	}{
		"an empty list is none":          {"", nil, ""},
		"spaces are left out":            {"1, 5000", []int32{1, 5000}, ""},
		"more than a batch can have":     {"5001", nil, `flag -tasks: "5001"`},
		"a number is missing at the end": {"1,", nil, `flag -tasks: ""`},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			got, err := parseSizes("tasks", test.list)
			if test.err != "" {
				require.ErrorContains(t, err, test.err)
				return
			}
			require.NoError(t, err)
			require.Equal(t, test.want, got)
		})
	}
}
