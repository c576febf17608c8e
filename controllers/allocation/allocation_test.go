package allocation

import (
	"testing"

	"github.com/stretchr/testify/require"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/opensandbox/operator/api/v1alpha1"
	"github.com/opensandbox/operator/controllers/ledger"
)

func pod(shard int32, name, ip string, base int32) ledger.HeldPod {
	return ledger.HeldPod{Pod: ledger.Pod{Name: name, IP: ip}, Shard: shard, Base: base}
}

func TestFormat(t *testing.T) {
	tests := map[string]struct {
		held      []ledger.HeldPod
		releasing []string
		want      Annotations
	}{
		"nothing held is no annotation": {},
		"in shard order whatever the order of the list": {
			held: []ledger.HeldPod{pod(1, "p-b", "10.0.0.2", 0), pod(0, "p-a", "10.0.0.1", 0)},
			want: Annotations{Status: `{"pods":["p-a","p-b"],"poolRef":"p"}`, Endpoints: `["10.0.0.1","10.0.0.2"]`},
		},
		"a shard without a sandbox is an empty string and the list ends at the last filled one": {
			held: []ledger.HeldPod{pod(2, "p-c", "10.0.0.3", 0)},
			want: Annotations{Status: `{"pods":["","","p-c"],"poolRef":"p"}`, Endpoints: `["","","10.0.0.3"]`},
		},
		"restart counts are ranges of equal counts": {
			held: []ledger.HeldPod{pod(0, "a", "1", 0), pod(1, "b", "2", 2), pod(2, "c", "3", 2), pod(3, "d", "4", 1)},
			want: Annotations{
				Status:    `{"pods":["a","b","c","d"],"poolRef":"p","restarts":[{"from":1,"to":2,"count":2},{"from":3,"to":3,"count":1}]}`,
				Endpoints: `["1","2","3","4"]`,
			},
		},
		"released pods are sorted": {
			releasing: []string{"p-b", "p-a"},
			want:      Annotations{Release: `{"pods":["p-a","p-b"]}`},
		},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			got := Format("p", test.held, test.releasing)
			require.Equal(t, test.want, got)
		})
	}
}

func TestRecordOf(t *testing.T) {
	ours := []string{v1alpha1.FinalizerPoolAllocation}
	tests := map[string]struct {
		finalizers  []string
		annotations map[string]string
		want        ledger.Record
		wantErr     string
	}{
		"without annotations nothing is held": {finalizers: ours},
		"both lists are read": {
			finalizers: ours,
			annotations: map[string]string{
				v1alpha1.AnnotationAllocStatus:  `{"pods":["a","","c"],"restarts":[{"from":2,"to":2,"count":7}]}`,
				v1alpha1.AnnotationAllocRelease: `{"pods":["d"]}`,
			},
			want: ledger.Record{Pods: []string{"a", "", "c"}, Restarts: []int32{0, 0, 7}, Releasing: []string{"d"}},
		},
		"without the finalizer the annotations are not the operator's": {
			annotations: map[string]string{v1alpha1.AnnotationAllocStatus: `{"pods":["a"]}`},
		},
		"a hostile restart range is bounded": {
			finalizers:  ours,
			annotations: map[string]string{v1alpha1.AnnotationAllocStatus: `{"pods":["a"],"restarts":[{"from":-9,"to":2147483647,"count":1}]}`},
			want:        ledger.Record{Pods: []string{"a"}, Restarts: []int32{1}},
		},
		"an unreadable annotation is named": {
			finalizers:  ours,
			annotations: map[string]string{v1alpha1.AnnotationAllocStatus: `{"pods":`},
			want:        ledger.Record{Unreadable: true},
			wantErr:     "annotation sandbox.opensandbox.io/alloc-status cannot be read",
		},
		"an unreadable release is named": {
			finalizers:  ours,
			annotations: map[string]string{v1alpha1.AnnotationAllocRelease: `[]`},
			want:        ledger.Record{Unreadable: true},
			wantErr:     "annotation sandbox.opensandbox.io/alloc-release cannot be read",
		},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			bs := &v1alpha1.BatchSandbox{
				ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "b", UID: "u", Finalizers: test.finalizers, Annotations: test.annotations},
				Spec:       v1alpha1.BatchSandboxSpec{PoolRef: "p"},
			}
			got, err := RecordOf(bs)
			if test.wantErr != "" {
				require.ErrorContains(t, err, test.wantErr)
			} else {
				require.NoError(t, err)
			}
			test.want.Pool, test.want.Owner = PoolOf(bs), OwnerOf(bs)
			require.Equal(t, test.want, got)
		})
	}
}

// A message that changes from one reconcile to the next would be written each time.
func TestOfTwoUnreadableAnnotationsTheSameIsNamedEachTime(t *testing.T) {
	bs := &v1alpha1.BatchSandbox{ObjectMeta: metav1.ObjectMeta{
		Finalizers:  []string{v1alpha1.FinalizerPoolAllocation},
		Annotations: map[string]string{v1alpha1.AnnotationAllocStatus: "{", v1alpha1.AnnotationAllocRelease: "{"},
	}}
	for range 100 {
		_, err := RecordOf(bs)
		require.ErrorContains(t, err, "alloc-status cannot be read")
	}
}

func TestWhatIsWrittenIsReadBack(t *testing.T) {
	held := []ledger.HeldPod{pod(0, "a", "1", 3), pod(4, "e", "5", 3)}
	a := Format("p", held, []string{"x"})
	bs := &v1alpha1.BatchSandbox{ObjectMeta: metav1.ObjectMeta{
		Finalizers:  []string{v1alpha1.FinalizerPoolAllocation},
		Annotations: map[string]string{"other": "stays"},
	}}
	for key, value := range a.Map() {
		if value != nil {
			bs.Annotations[key] = *value
		}
	}
	record, err := RecordOf(bs)
	require.NoError(t, err)
	require.Equal(t, []string{"a", "", "", "", "e"}, record.Pods)
	require.Equal(t, []int32{3, 0, 0, 0, 3}, record.Restarts)
	require.Equal(t, []string{"x"}, record.Releasing)
	require.Equal(t, a, Of(bs))

	size := 0
	for key, value := range bs.Annotations {
		size += len(key) + len(value)
	}
	require.Equal(t, size, SizeWith(bs, a))
}

// A backup may bring the annotations and the finalizer of another cluster's pool along.
func TestWhoNamesNoPoolHoldsNothing(t *testing.T) {
	bs := &v1alpha1.BatchSandbox{ObjectMeta: metav1.ObjectMeta{
		Finalizers:  []string{v1alpha1.FinalizerPoolAllocation},
		Annotations: map[string]string{v1alpha1.AnnotationAllocStatus: `{"pods":["a"]}`},
	}, Spec: v1alpha1.BatchSandboxSpec{PoolRef: v1alpha1.AnyPool}}
	record, err := RecordOf(bs)
	require.NoError(t, err)
	require.Empty(t, record.Pods)
}
