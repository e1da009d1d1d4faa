#!/usr/bin/env bash
# A Kubernetes cluster for raycluster.yaml and rayjob.yaml, on Google Cloud:
#     bash cluster/kuberay/gke_account.sh PROJECT BUCKET
# Its control plane answers this machine's address only. It has a pool of spot CPU nodes and one of GPU nodes,
# both from 0, the KubeRay operator, a registry for the image, and two service accounts that may read and write
# the bucket, which exists already.
set -euo pipefail
project=$1 bucket=$2
region=us-central1 zone=us-central1-a
address=$(curl -fsS https://checkip.amazonaws.com)

gcloud() { command gcloud --project="$project" --quiet "$@"; }

gcloud services enable container.googleapis.com artifactregistry.googleapis.com
number=$(gcloud projects describe "$project" --format='value(projectNumber)')
gcloud artifacts repositories create carl-ray --repository-format=docker --location=$region
gcloud artifacts repositories add-iam-policy-binding carl-ray --location=$region \
    --role=roles/artifactregistry.reader \
    --member="serviceAccount:$number-compute@developer.gserviceaccount.com"
gcloud auth configure-docker $region-docker.pkg.dev

# A network of its own: the default one lets the world in at port 22.
gcloud compute networks create carl-ray-gke --subnet-mode=auto
gcloud container clusters create carl-ray --zone=$zone --network=carl-ray-gke \
    --machine-type=e2-standard-8 --num-nodes=1 --workload-pool="$project.svc.id.goog" \
    --enable-master-authorized-networks --master-authorized-networks="$address/32"
gcloud container node-pools create data --cluster=carl-ray --zone=$zone --machine-type=c2d-highcpu-16 --spot \
    --num-nodes=0 --enable-autoscaling --min-nodes=0 --max-nodes=8 --workload-metadata=GKE_METADATA \
    --node-labels=carl-ray/nodes=spot-cpu --node-taints=carl-ray/nodes=spot-cpu:NoSchedule
gcloud container node-pools create train --cluster=carl-ray --zone=$zone --machine-type=g2-standard-16 \
    --accelerator=type=nvidia-l4,count=1,gpu-driver-version=latest \
    --num-nodes=0 --enable-autoscaling --min-nodes=0 --max-nodes=4 --workload-metadata=GKE_METADATA \
    --node-labels=carl-ray/nodes=gpu --node-taints=carl-ray/nodes=gpu:NoSchedule
gcloud container clusters get-credentials carl-ray --zone=$zone

helm install kuberay-operator kuberay-operator --repo https://ray-project.github.io/kuberay-helm/ \
    --namespace kuberay --create-namespace
kubectl create namespace carl
pool=projects/$number/locations/global/workloadIdentityPools/$project.svc.id.goog
for account in carl-ray-head carl-ray-node; do
    kubectl create serviceaccount $account --namespace carl
    # Its objects; and the bucket itself, which Ray Train looks at before it makes its folder.
    for role in roles/storage.objectUser roles/storage.legacyBucketReader; do
        gcloud storage buckets add-iam-policy-binding "gs://$bucket" --role=$role \
            --member="principal://iam.googleapis.com/$pool/subject/ns/carl/sa/$account"
    done
done
