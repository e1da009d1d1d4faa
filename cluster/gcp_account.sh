#!/usr/bin/env bash
# What gcp.yaml needs of a project:
#     bash cluster/gcp_account.sh PROJECT BUCKET FILE
# A network that admits ssh from this machine's address only, and two service accounts; FILE becomes gcp.yaml
# with the project's name. The bucket exists already.
set -euo pipefail
project=$1 bucket=$2 file=$3
region=us-central1
address=$(curl -fsS https://checkip.amazonaws.com)

gcloud() { command gcloud --project="$project" --quiet "$@"; }

gcloud services enable compute.googleapis.com iam.googleapis.com cloudresourcemanager.googleapis.com
gcloud compute networks create carl-ray --subnet-mode=custom
gcloud compute networks subnets create carl-ray --network=carl-ray --region=$region --range=10.42.0.0/16 \
    --enable-private-ip-google-access
gcloud compute firewall-rules create carl-ray-inside --network=carl-ray --source-ranges=10.42.0.0/16 \
    --allow=tcp,udp,icmp
gcloud compute firewall-rules create carl-ray-ssh --network=carl-ray \
    --source-ranges="$address/32" --allow=tcp:22

for account in carl-ray-head carl-ray-node; do
    gcloud iam service-accounts create $account
    # Its objects; and the bucket itself, which Ray Train looks at before it makes its folder.
    for role in roles/storage.objectUser roles/storage.legacyBucketReader; do
        gcloud storage buckets add-iam-policy-binding "gs://$bucket" --role=$role \
            --member="serviceAccount:$account@$project.iam.gserviceaccount.com"
    done
done
gcloud projects add-iam-policy-binding "$project" --role=roles/compute.instanceAdmin.v1 --condition=None \
    --member="serviceAccount:carl-ray-head@$project.iam.gserviceaccount.com"
gcloud iam service-accounts add-iam-policy-binding "carl-ray-node@$project.iam.gserviceaccount.com" \
    --role=roles/iam.serviceAccountUser \
    --member="serviceAccount:carl-ray-head@$project.iam.gserviceaccount.com"

sed "s/PROJECT_ID/$project/" "$(dirname "$0")/gcp.yaml" > "$file"
