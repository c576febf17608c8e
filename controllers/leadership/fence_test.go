package leadership

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
)

func TestAnOldLeaseKeepsWritesFromBeingSent(t *testing.T) {
	var mu sync.Mutex // guards received
	var received []string
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		received = append(received, r.Method)
		w.Header().Set("Content-Type", "application/json")
		_, _ = w.Write([]byte(`{"kind":"Pod","apiVersion":"v1"}`))
	}))
	t.Cleanup(server.Close)
	var stale error
	config := Fenced(&rest.Config{Host: server.URL}, func() error { return stale })
	api, err := kubernetes.NewForConfig(config)
	require.NoError(t, err)
	pods := api.CoreV1().Pods("ns")
	requests := []struct {
		name string
		send func(context.Context) error
		sent bool // also with an old lease
	}{
		{"a get", func(ctx context.Context) error { _, err := pods.Get(ctx, "a", metav1.GetOptions{}); return err }, true},
		{"a list", func(ctx context.Context) error { _, err := pods.List(ctx, metav1.ListOptions{}); return err }, true},
		{"a dry run", func(ctx context.Context) error {
			_, err := pods.Create(ctx, &corev1.Pod{}, metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}})
			return err
		}, true},
		{"a create", func(ctx context.Context) error {
			_, err := pods.Create(ctx, &corev1.Pod{}, metav1.CreateOptions{})
			return err
		}, false},
		{"an update", func(ctx context.Context) error {
			_, err := pods.Update(ctx, &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "a"}}, metav1.UpdateOptions{})
			return err
		}, false},
		{"a patch of a status", func(ctx context.Context) error {
			_, err := pods.Patch(ctx, "a", "application/merge-patch+json", []byte(`{}`), metav1.PatchOptions{}, "status")
			return err
		}, false},
		{"a delete", func(ctx context.Context) error { return pods.Delete(ctx, "a", metav1.DeleteOptions{}) }, false},
	}
	for _, r := range requests {
		t.Run(r.name, func(t *testing.T) {
			stale, received = nil, nil
			require.NoError(t, r.send(t.Context()))
			require.Len(t, received, 1, "with a fresh lease")
			stale = errors.New("the lease is old")
			err := r.send(t.Context())
			if r.sent {
				require.NoError(t, err)
				require.Len(t, received, 2)
				return
			}
			require.ErrorIs(t, err, stale)
			require.Len(t, received, 1, "nothing was sent")
		})
	}
}
