package v1alpha1

import (
	"encoding/json"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestPodTemplateKeepsWhatIsWritten(t *testing.T) {
	tests := map[string]struct {
		text      string
		malformed string
	}{
		"a pod template":    {`{"metadata":{},"spec":{"containers":[{"name":"a","image":"b","resources":{}}]}}`, ""},
		"a wrong type":      {`{"spec":{"containers":"nginx"}}`, "spec.containers"},
		"a number too big":  {`{"spec":{"containers":[{"name":"a","ports":[{"containerPort":5000000000}]}]}}`, "containerPort"},
		"a wrong quantity":  {`{"spec":{"containers":[{"name":"a","resources":{"limits":{"cpu":"lots"}}}]}}`, "quantities"},
		"labels as a list":  {`{"metadata":{"labels":["a"]}}`, "metadata.labels"},
		"a misplaced value": {`{"spec":1}`, "spec"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			var list []PodTemplate
			require.NoError(t, json.Unmarshal([]byte("["+test.text+"]"), &list))
			template := list[0].DeepCopy()
			if test.malformed == "" {
				require.NoError(t, template.Check())
				assert.Equal(t, "b", template.Spec.Containers[0].Image)
			} else {
				require.ErrorContains(t, template.Check(), "spec.template: not a pod template")
				require.ErrorContains(t, template.Check(), test.malformed)
			}
			written, err := json.Marshal(template)
			require.NoError(t, err)
			assert.JSONEq(t, test.text, string(written))
		})
	}
	require.NoError(t, (*PodTemplate)(nil).Check())
}
