package integration

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/clock"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/opensandbox/operator/api/v1alpha1"
	"github.com/opensandbox/operator/controllers/ownnamespace"
)

// neverTicks is a clock on which the time to look again does not come.
type neverTicks struct{ clock.RealClock }

func (c neverTicks) NewTicker(time.Duration) clock.Ticker { return c.RealClock.NewTicker(time.Hour) }

// A process that ends looks once more, but touches nothing
// when it may no longer be the leader.
func TestAnOperatorThatEndsLetsGoOfItsNamespaceIfItStillLeads(t *testing.T) {
	tests := map[string]struct {
		lease   error
		deleted bool
		want    []string
	}{
		"its namespace is being deleted":                           {deleted: true},
		"its namespace is being deleted, but another one may lead": {deleted: true, lease: errors.New("lost"), want: []string{v1alpha1.FinalizerPoolAllocation, v1alpha1.FinalizerTaskCleanup}},
		"its namespace stays":                                      {want: []string{v1alpha1.FinalizerPoolAllocation, v1alpha1.FinalizerTaskCleanup}},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			ns := newNamespace(t)
			bs := &v1alpha1.BatchSandbox{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: "held",
				Finalizers: []string{v1alpha1.FinalizerPoolAllocation, v1alpha1.FinalizerTaskCleanup}},
				// Nothing for the operator that runs beside the test to do.
				Spec: v1alpha1.BatchSandboxSpec{Replicas: ptr.To(int32(0)), Template: template()}}
			require.NoError(t, api.Create(t.Context(), bs))

			looked := make(chan struct{}, 10)
			own, err := ownnamespace.New(ownnamespace.Config{Name: ns, Live: signalling{api, looked}, Client: api,
				Fresh: func() error { return test.lease }, Clock: neverTicks{}})
			require.NoError(t, err)
			ctx, cancel := context.WithCancel(t.Context())
			ended := make(chan error)
			go func() { ended <- own.Start(ctx) }()
			<-looked // all was well then
			if test.deleted {
				require.NoError(t, api.Delete(t.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: ns}}))
			}
			cancel()
			require.NoError(t, <-ended)
			require.Equal(t, test.deleted, own.Ending(ns))
			require.NoError(t, api.Get(t.Context(), client.ObjectKeyFromObject(bs), bs))
			require.Equal(t, test.want, bs.Finalizers)
		})
	}
}

// signalling tells of every object that was read.
type signalling struct {
	client.Reader
	read chan<- struct{}
}

func (s signalling) Get(ctx context.Context, key client.ObjectKey, obj client.Object, opts ...client.GetOption) error {
	err := s.Reader.Get(ctx, key, obj, opts...)
	s.read <- struct{}{}
	return err
}
