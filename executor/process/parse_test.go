package process

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
)

func TestInContainer(t *testing.T) {
	id := strings.Repeat("ab12", 16)
	for _, c := range []struct {
		name, groups string
		want         bool
	}{
		{"cgroup v1", "4:memory:/kubepods/burstable/podX/" + id + "\n0::/\n", true},
		{"cgroup v2 from another container's namespace", "0::/../" + id + "\n", true},
		{"systemd", "0::/../cri-containerd-" + id + ".scope\n", true},
		{"CRI-O with systemd", "0::/kubepods.slice/crio-" + id + ".scope\n", true},
		{"a cgroup below", "0::/../" + id + "/init.scope\n", true},
		{"another container", "0::/../" + strings.Repeat("0", 64) + "\n", false},
		{"the own one", "0::/\n", false},
		{"a longer id", "0::/../" + id + "00\n", false},
		{"as the name of a controller", "1:" + id + ":/\n", false},
		{"nothing", "", false},
	} {
		t.Run(c.name, func(t *testing.T) { assert.Equal(t, c.want, inContainer(c.groups, id)) })
	}
}

func TestParseEnviron(t *testing.T) {
	for _, c := range []struct {
		name, data string
		want       []string
	}{
		{"variables", "A=1\x00B=\x00", []string{"A=1", "B="}},
		{"a value with anything", "A=x=y z\n\x00", []string{"A=x=y z\n"}},
		{"empty", "", nil},
		{"only NUL bytes", "\x00\x00\x00", nil},
		{"nginx", "aster process nginx -g daemon off;\x00\x00\x00\x00", nil},
		{"a title with an equals sign", "aster -c a=b\x00\x00\x00", nil},
		{"partly overwritten", "garbage\x00PATH=/bin\x00", nil},
		{"no name", "=x\x00", nil},
	} {
		t.Run(c.name, func(t *testing.T) { assert.Equal(t, c.want, parseEnviron([]byte(c.data))) })
	}
}

func TestLinesAreSplitAndNotMixed(t *testing.T) {
	var out strings.Builder
	l := &lines{out: &out}
	for _, part := range []string{"one\ntw", "o\n", "", "three", " and on"} {
		_, _ = l.Write([]byte(part))
	}
	assert.Equal(t, "one\ntwo\n", out.String())
	l.flush()
	l.flush()
	assert.Equal(t, "one\ntwo\nthree and on\n", out.String())

	out.Reset()
	_, _ = l.Write([]byte(strings.Repeat("x", maxLine+5) + "\n"))
	_, _ = l.Write([]byte(strings.Repeat("y", maxLine+5)))
	l.flush()
	want := strings.Repeat("x", maxLine+5) + "\n" + strings.Repeat("y", maxLine) + "\nyyyyy\n"
	assert.Equal(t, want, out.String())
}
