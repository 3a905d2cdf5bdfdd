#!/usr/bin/env bash
# A real API server of Kubernetes and its controllers, built from Debian's source package: about five minutes on two
# cores, two gigabytes.  build.sh [FOLDER]  (for root, on Debian 12; the default is where tests/test_kubernetes.py looks)
# It is version 1.20 of 2021: no newer one can be built from a distribution's own sources.
set -euo pipefail
K=${1:-$HOME/.cache/ml-template/kubernetes}
mkdir -p "$K"/{bin,lists/partial,source}
apt-get install -y -qq --no-install-recommends golang-go etcd-server kubernetes-client
echo "deb-src http://deb.debian.org/debian bookworm main" >"$K/source.list"
O=(-o "Dir::Etc::SourceList=$K/source.list" -o Dir::Etc::SourceParts=/dev/null -o "Dir::State::Lists=$K/lists" -o "Dir::Cache=$K")
apt-get "${O[@]}" update -qq
cd "$K/source"
apt-get "${O[@]}" -qq --download-only source kubernetes
export GOCACHE=$K/go-cache GOPATH=$K/go GO111MODULE=off GOPROXY=off # with modules its vendored packages do not build
R=$GOPATH/src/k8s.io/kubernetes
mkdir -p "$R"
tar xzf ./*.orig.tar.gz --strip-components=1 -C "$R"
cd "$R"
# a generated file that the package lacks
go build -o "$K/bin/openapi-gen" k8s.io/kubernetes/vendor/k8s.io/kube-openapi/cmd/openapi-gen
packages=$(find -L pkg cmd vendor/k8s.io plugin -name '*.go' -not -path '*/_examples/*' |
	grep -v -E 'vendor/k8s.io/(code-generator|sample-apiserver)/' | xargs grep -l '+k8s:openapi-gen=' |
	xargs -n1 dirname | LC_ALL=C sort -u | sed 's#^#k8s.io/kubernetes/#' | paste -sd,)
"$K/bin/openapi-gen" --logtostderr -i "$packages" -p k8s.io/kubernetes/pkg/generated/openapi -O zz_generated.openapi \
	-h vendor/k8s.io/code-generator/hack/boilerplate.go.txt -r "$K/violations.txt"
for program in kube-apiserver kube-controller-manager; do
	go build -o "$K/bin/" "k8s.io/kubernetes/cmd/$program"
done
rm -rf "$K/go" "$K/go-cache" "$K/source"
ls -l "$K/bin"
