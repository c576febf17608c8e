package apiwrite

import (
	"testing"

	"github.com/stretchr/testify/require"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func TestLater(t *testing.T) {
	require.True(t, Later("10", "9"), "versions are numbers")
	require.False(t, Later("9", "10"))
	require.False(t, Later("10", "10"))
	require.False(t, Later("what?", "10"))
	require.False(t, Later("10", ""))
}

func TestTheLastAnswerCountsUntilTheCacheHasIt(t *testing.T) {
	version := func(v string) *metav1.ObjectMeta { return &metav1.ObjectMeta{ResourceVersion: v} }
	var n Newest[*metav1.ObjectMeta]
	require.Equal(t, "9", n.Of(version("9")).ResourceVersion, "nothing was answered")
	n.Note(version("10"))
	require.Equal(t, "10", n.Of(version("9")).ResourceVersion, "the cache is late")
	require.Equal(t, "10", n.Of(version("9")).ResourceVersion, "and still is")
	require.Equal(t, "11", n.Of(version("11")).ResourceVersion)
	require.Equal(t, "9", n.Of(version("9")).ResourceVersion, "the answer was forgotten when the cache had passed it")
	n.Note(version("10"))
	require.Equal(t, "what?", n.Of(version("what?")).ResourceVersion, "not comparable")
}

func TestAnObjectThatWasLetGoStaysGone(t *testing.T) {
	deleted := metav1.Now()
	held := &metav1.ObjectMeta{UID: "a", ResourceVersion: "9", DeletionTimestamp: &deleted, Finalizers: []string{"x"}}
	gone := &metav1.ObjectMeta{UID: "a", ResourceVersion: "9", DeletionTimestamp: &deleted}
	var n Newest[*metav1.ObjectMeta]
	n.Note(gone)
	require.Empty(t, n.Of(held).Finalizers, "the cache is late")
	another := &metav1.ObjectMeta{UID: "b", ResourceVersion: "11"}
	require.Equal(t, another, n.Of(another), "of the same name")
}
