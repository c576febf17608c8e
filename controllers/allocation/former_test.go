package allocation

import (
	"testing"

	"github.com/stretchr/testify/require"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/opensandbox/operator/api/v1alpha1"
)

func TestWhatAnotherControllerHasWrittenIsReadAsItMeansIt(t *testing.T) {
	const status, release, released = v1alpha1.AnnotationAllocStatus, v1alpha1.AnnotationAllocRelease, v1alpha1.AnnotationAllocReleased
	tests := map[string]struct {
		annotations map[string]string
		own         string // a pod that may be idle
		noFinalizer bool
		want        *Former
		err         string
	}{
		"nothing was given back": {
			annotations: map[string]string{status: `{"pods":["a","b"],"poolRef":"pool","generation":2}`},
			want:        &Former{Held: []string{"a", "b"}},
		},
		"what was taken back is held no more, and its shard stays empty": {
			annotations: map[string]string{status: `{"pods":["a","b"],"poolRef":"pool","generation":2}`, release: `{"pods":["a"]}`, released: `{"pods":["a"]}`},
			want:        &Former{Held: []string{"", "b"}, Ended: []int32{0}},
		},
		"what was asked to be given back is not clean yet": {
			annotations: map[string]string{status: `{"pods":["a","b"],"generation":2}`, release: `{"pods":["b"]}`},
			want:        &Former{Held: []string{"a", ""}, Releasing: []string{"b"}, Ended: []int32{1}},
		},
		"an earlier version names the pods alone": {
			annotations: map[string]string{status: `{"pods":["a","b"]}`, release: `{"pods":["a"]}`, released: `{"pods":["a"]}`},
			want:        &Former{Held: []string{"", "b"}, Ended: []int32{0}},
		},
		"a pod is asked back that it was never given": {
			annotations: map[string]string{status: `{"pods":["a"],"generation":1}`, release: `{"pods":["of-another"]}`},
			want:        &Former{Held: []string{"a"}},
		},
		"a user writes that a sandbox of this operator was taken back": {
			annotations: map[string]string{status: `{"pods":["a","b"],"poolRef":"pool"}`, released: `{"pods":["a"]}`},
			own:         "a", want: &Former{Held: []string{"a", "b"}},
		},
		"and that it has given it up": {
			annotations: map[string]string{status: `{"pods":["a"],"poolRef":"pool"}`, release: `{"pods":["a"]}`, released: `{"pods":["a"]}`},
			own:         "a", want: &Former{Held: []string{""}, Releasing: []string{"a"}, Ended: []int32{0}},
		},
		"the operator's own": {
			annotations: map[string]string{status: `{"pods":["a"],"poolRef":"pool"}`, release: `{"pods":["b"]}`},
		},
		"without the finalizer they are nobody's": {
			annotations: map[string]string{status: `{"pods":["a"],"generation":1}`, released: `{"pods":["a"]}`}, noFinalizer: true,
		},
		"unreadable": {
			annotations: map[string]string{status: `{"pods":["a"],"generation":1}`, released: `{`},
			err:         "annotation sandbox.opensandbox.io/alloc-released cannot be read",
		},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			bs := &v1alpha1.BatchSandbox{
				ObjectMeta: metav1.ObjectMeta{Annotations: test.annotations, Finalizers: []string{v1alpha1.FinalizerPoolAllocation}},
				Spec:       v1alpha1.BatchSandboxSpec{PoolRef: "pool"},
			}
			if test.noFinalizer {
				bs.Finalizers = nil
			}
			got, err := FormerOf(bs, func(pod string) bool { return pod == test.own })
			if test.err != "" {
				require.ErrorContains(t, err, test.err)
				return
			}
			require.NoError(t, err)
			require.Equal(t, test.want, got)
		})
	}
}

func TestItIsWrittenDownAsTheOperatorDoes(t *testing.T) {
	former := &Former{Held: []string{"", "b", ""}, Releasing: []string{"c"}}
	values := former.Annotations("pool", func(string) int32 { return 3 })
	require.Len(t, values, 3, "the endpoints are not touched")
	require.JSONEq(t, `{"pods":["","b"],"poolRef":"pool","restarts":[{"from":1,"to":1,"count":3}]}`, *values[v1alpha1.AnnotationAllocStatus])
	require.JSONEq(t, `{"pods":["c"]}`, *values[v1alpha1.AnnotationAllocRelease])
	require.Nil(t, values[v1alpha1.AnnotationAllocReleased])

	values = (&Former{Held: []string{""}}).Annotations("pool", nil)
	require.Nil(t, values[v1alpha1.AnnotationAllocStatus])
	require.Nil(t, values[v1alpha1.AnnotationAllocRelease])
}
